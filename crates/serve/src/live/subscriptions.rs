//! The subscriptions of one connection, as one stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use catchment_store::live::{Follow, LiveMessage};
use futures::stream::{AbortHandle, SelectAll, Stream, StreamExt, abortable, unfold};

use super::message::Wanted;
use crate::ServeState;

/// A message with the id of its subscription; nothing when the hub has closed.
type Item = Option<(Arc<str>, LiveMessage)>;

pub(super) struct Subscriptions {
    state: Arc<ServeState>,
    follow: Follow,
    streams: SelectAll<Pin<Box<dyn Stream<Item = Item> + Send>>>,
    handles: HashMap<Arc<str>, AbortHandle>,
}

impl Subscriptions {
    pub(super) fn new(state: Arc<ServeState>, follow: Follow) -> Self {
        Self { state, follow, streams: SelectAll::new(), handles: HashMap::new() }
    }

    pub(super) fn follows_events(&self) -> bool {
        self.follow == Follow::Events
    }

    pub(super) fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Adds a subscription, or says why not.
    pub(super) fn add(&mut self, id: &str, wanted: &Wanted) -> Result<(), String> {
        if self.handles.contains_key(id) {
            return Err("there is a subscription of that id already".to_owned());
        }
        let max = self.state.config.subscriptions_max;
        if self.handles.len() >= max {
            return Err(format!("this connection has {max} subscriptions already"));
        }
        let subscription =
            self.state.live.subscribe(wanted.filter(self.follow)).map_err(|error| error.to_string())?;
        let id: Arc<str> = id.into();
        let messages = unfold(Some((subscription, Arc::clone(&id))), async |state| {
            let (mut subscription, id) = state?;
            match subscription.recv().await {
                Some(message) => Some((Some((Arc::clone(&id), message)), Some((subscription, id)))),
                None => Some((None, None)),
            }
        });
        let (messages, handle) = abortable(messages);
        self.streams.push(Box::pin(messages));
        self.handles.insert(id, handle);
        Ok(())
    }

    /// Ends a subscription; whether there was one.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        self.handles.remove(id).inspect(AbortHandle::abort).is_some()
    }

    /// The next message of any subscription; nothing when the server stops. Safe to cancel.
    pub(super) async fn next(&mut self) -> Item {
        loop {
            match self.streams.next().await {
                Some(Some((id, message))) if self.handles.contains_key(&id) => return Some((id, message)),
                // Of a subscription that was ended a moment ago.
                Some(Some(_)) => {}
                Some(None) => return None,
                // All were ended: the caller does not ask again before there is another.
                None => std::future::pending().await,
            }
        }
    }
}
