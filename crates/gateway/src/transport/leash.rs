//! What ends connections whose certificates are no longer good: a revocation must not wait for the client to leave.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use foldhash::fast::RandomState;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

/// All connections of clients with certificates.
#[derive(Debug, Default)]
pub(super) struct Leashes(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    next_id: u64,
    leashes: HashMap<u64, Arc<Leash>, RandomState>,
}

#[derive(Debug)]
struct Leash {
    chain: Box<[CertificateDer<'static>]>,
    cut: AtomicBool,
    waker: AtomicWaker,
}

/// A connection's end of its leash.
#[derive(Debug)]
pub(super) struct Leashed {
    leash: Arc<Leash>,
    id: u64,
    leashes: Arc<Leashes>,
}

impl Leashes {
    /// Holds a connection whose client came with this certificate and those that lead to its CA.
    pub(super) fn hold(self: &Arc<Self>, chain: &[CertificateDer<'_>]) -> Leashed {
        let leash = Arc::new(Leash {
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let mut held = self.0.lock();
        held.next_id += 1;
        let id = held.next_id;
        held.leashes.insert(id, Arc::clone(&leash));
        Leashed { leash, id, leashes: Arc::clone(self) }
    }

    /// Ends the connections whose certificates are not good. Gives how many.
    pub(super) fn cut_unless(&self, is_good: impl Fn(&[CertificateDer<'_>]) -> bool) -> u64 {
        let all: Vec<_> = self.0.lock().leashes.values().cloned().collect();
        let mut cut = 0;
        for leash in all.into_iter().filter(|leash| !is_good(&leash.chain)) {
            if !leash.cut.swap(true, Ordering::AcqRel) {
                cut += 1;
                leash.waker.wake();
            }
        }
        cut
    }
}

impl Leashed {
    /// Whether the connection is to end; its task is woken when that changes.
    pub(super) fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.leash.waker.register(cx.waker());
        self.leash.cut.load(Ordering::Acquire)
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        self.leashes.0.lock().leashes.remove(&self.id);
    }
}
