//! How long a connection may stay, and how fast it may send: both can change while it is there.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::codec::{Reason, Version};
use super::connection::{Close, Connection};
use super::signal::RECHECK;
use crate::admission::{Denied, Principal};
use crate::config::OverLimit;
use crate::metrics::GatewayMetrics;

/// Timers of a connection that has any; idle ones without limits and without an end hold none.
#[derive(Debug)]
pub(super) struct Standing {
    remote: Option<SocketAddr>,
    /// When its credential expires.
    expiry: Option<Pin<Box<Sleep>>>,
    /// Until when nothing is read.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Standing {
    pub(super) fn new(principal: &Principal, remote: Option<SocketAddr>) -> Self {
        let expiry = principal.expires_at.map(|at| Box::pin(tokio::time::sleep_until(Instant::from_std(at))));
        Self { remote, expiry, pause: None }
    }
}

impl<S> Connection<S> {
    /// Ends the connection when it may not stay.
    #[inline]
    pub(super) fn poll_standing(&mut self, flags: u8, cx: &mut Context<'_>) -> Result<(), Close> {
        if flags & RECHECK != 0 {
            self.recheck()?;
        }
        if let Some(expiry) = &mut self.standing.expiry
            && expiry.as_mut().poll(cx).is_ready()
        {
            return Err(Close::told(Reason::NotAuthorized, "the credential has expired"));
        }
        Ok(())
    }

    /// Finds out whether the client may stay, and with which subscriptions. What it sends after this is decided anew.
    pub(super) fn recheck(&mut self) -> Result<(), Close> {
        let change = self.registered.gateway.admission_change();
        let admission = &self.registered.gateway.admission;
        if let Err(denied) = admission.recheck(&mut self.principal, self.standing.remote) {
            GatewayMetrics::count(&self.registered.gateway.metrics.admission, "withdrawn");
            tracing::info!(
                remote = ?self.standing.remote,
                client_id = self.session.client_id(),
                principal = &*self.principal.name,
                %denied,
                "sent away"
            );
            return Err(match denied {
                Denied::Banned { .. } => Close::told(Reason::Banned, "kept out for now"),
                Denied::Unavailable(_) | Denied::TooMany { .. } => {
                    Close::told(Reason::AdministrativeAction, "admission was withdrawn")
                }
                Denied::BadCredentials | Denied::NotAllowed(_) => {
                    Close::told(Reason::NotAuthorized, "admission was withdrawn")
                }
            });
        }
        if let Some(intake) = self.intake.made() {
            intake.topics.forget();
        }
        let may = |filter: &str| admission.may_subscribe(&self.principal, filter);
        let taken = self.broker.enforce(&self.session, may);
        if taken > 0 {
            tracing::info!(
                client_id = self.session.client_id(),
                taken,
                "subscriptions are no longer allowed"
            );
        }
        self.registered.signal.follow(change);
        Ok(())
    }

    /// Whether the connection is over its limits and is not to be read now.
    #[inline]
    pub(super) fn is_paused(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pause) = &mut self.standing.pause else { return false };
        if pause.as_mut().poll(cx) == Poll::Pending {
            return true;
        }
        self.standing.pause = None;
        false
    }

    /// Charges what was read. Over the limits, the connection is not read until that is paid for.
    #[inline]
    pub(super) fn charge(&mut self) {
        let Some(limits) = &self.principal.limits else { return };
        let (messages, bytes) = (self.intake.tally.messages, self.intake.tally.message_bytes);
        let wait =
            if messages > 0 && !self.refuses() { limits.charge(messages, bytes) } else { Duration::ZERO };
        if !wait.is_zero() {
            GatewayMetrics::count(&self.registered.gateway.metrics.limited, "mqtt");
            self.standing.pause = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    /// Whether a message is to be refused since the client is over its limits. Counts it either way.
    #[inline]
    pub(super) fn is_over_limit(&mut self, payload_bytes: usize) -> bool {
        self.intake.tally.messages += 1;
        self.intake.tally.message_bytes += payload_bytes as u64;
        match &self.principal.limits {
            Some(limits) if self.refuses() => !limits.take(payload_bytes as u64).is_zero(),
            _ => false,
        }
    }

    fn refuses(&self) -> bool {
        self.peer.version == Version::V5
            && self.registered.gateway.config.mqtt.over_limit == OverLimit::Refuse
    }
}
