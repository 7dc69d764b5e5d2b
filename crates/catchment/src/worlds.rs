//! Simulated worlds, for `demo` and `simulate`.

use catchment_sim::{LoadConfig, MqttTarget, World};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{SimulateArgs, WorldArgs, WorldName};
use crate::trust::Roots;
use crate::tunnel;

/// Publishes one world until Ctrl-C.
///
/// # Errors
/// The runtime cannot start, or there is no CA to verify an `mqtts://` server by.
pub(crate) fn simulate(args: &SimulateArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seed = args.options.seed;
    let world = match args.world {
        WorldName::City => World::City { seed },
        WorldName::Market => World::Market { seed },
        // Asking for the load is asking for at least one device.
        WorldName::Load => load(&args.options, args.options.load_devices.max(1)),
    };
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut target = args.to.clone();
        if target.tls {
            let roots = Roots::read(args.ca.as_deref())?;
            target.via = Some(tunnel::open(&target.host, target.port, &roots).await?);
        }
        let running = tokio::spawn(world.run(target, shutdown.clone()));
        println!("publishing to {}; Ctrl-C ends", args.to);
        tokio::signal::ctrl_c().await?;
        shutdown.cancel();
        running.await?;
        Ok(())
    })
}

/// Starts the worlds of a demo.
pub(crate) fn start(args: &WorldArgs, target: &MqttTarget, shutdown: &CancellationToken) -> JoinSet<()> {
    let mut worlds = vec![World::City { seed: args.seed }, World::Market { seed: args.seed }];
    if args.load_devices > 0 {
        worlds.push(load(args, args.load_devices));
    }
    let mut running = JoinSet::new();
    for world in worlds {
        running.spawn(world.run(target.clone(), shutdown.clone()));
    }
    running
}

fn load(args: &WorldArgs, devices: u32) -> World {
    World::Load(LoadConfig { devices, rate: args.load_rate, seed: args.seed })
}
