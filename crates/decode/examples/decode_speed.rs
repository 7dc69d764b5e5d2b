//! How long one event takes to decode: `cargo run --release -p catchment-decode --example decode_speed`.

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use catchment_decode::{Decoder, DecoderRule, ReadingSink, RuleError};
use catchment_types::{Event, Reading, RejectReason, Timestamp};

const ROUNDS: u32 = 1_000_000;

#[derive(Default)]
struct Sum(f64, u32);

impl ReadingSink for Sum {
    fn reading(&mut self, reading: Reading<'_>) -> Result<(), RejectReason> {
        self.0 += reading.value.number().unwrap_or_default();
        Ok(())
    }
    fn reject(&mut self, _: RejectReason, _: fmt::Arguments<'_>) {
        self.1 += 1;
    }
}

fn main() -> Result<(), RuleError> {
    let small = r#"{"data_id":150,"name":"BTC","timestamp":1645270401,"price":40012.5}"#.to_owned();
    let five = |padding: usize| {
        format!(
            r#"{{"timestamp":1645270401000,"metrics":{{"temperature":21.5,"humidity":48.25,"pressure":1013.25,"voltage":3.71}},"note":"{}"}}"#,
            "x".repeat(padding)
        )
    };
    let observed = five(880).replace("1645270401000", "\"2022-02-19T11:33:21Z\"");
    for (name, payload) in
        [("70 bytes, 3 metrics", small), ("1 KB, 5 metrics", five(880)), ("the same, RFC 3339", observed)]
    {
        let event = Event {
            realm: "main",
            device_id: "device-1",
            event_type: "state",
            topic: "devices/device-1/state",
            received_at: Timestamp(1_700_000_000_000_000),
            content_type: "",
            tags: "",
            mark: 0,
            payload: payload.as_bytes(),
        };
        let mut decoder = Decoder::new(DecoderRule::default())?;
        let mut sum = Sum::default();
        let start = Instant::now();
        for _ in 0..ROUNDS {
            decoder.decode(black_box(&event), &mut sum);
        }
        let nanos = start.elapsed().as_nanos() / u128::from(ROUNDS);
        println!("{name} ({} bytes): {nanos} ns an event, {} rejects", payload.len(), black_box(sum).1);
    }
    Ok(())
}
