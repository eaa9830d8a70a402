//! Ends commands whose time ran out on devices that do not ask, and deletes those that are over for long.
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use crate::clock::UnixMillis;
use crate::store::Store;

/// How late EXPIRED may show in a list; a delivery never is, since it looks for itself.
const EVERY: Duration = Duration::from_secs(10);

/// Pause between two sweeps of which the first had more to do, so that other writes come between.
const PAUSE: Duration = Duration::from_millis(50);

/// One for the server. It has no state: each sweep reads what is due from the registry.
pub struct CommandSweeper {
    store: Arc<dyn Store>,
}

impl CommandSweeper {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    fn sweep_after(&self, pause: Duration, context: &mut Context<Self>) {
        context.run_later(pause, |this, context| {
            let swept = this.store.sweep_commands(UnixMillis::now()).into_actor(this);
            let next = swept.map(|outcome, this, context| {
                let has_more = match outcome {
                    Ok(swept) => swept.has_more,
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "commands were not swept");
                        false
                    }
                };
                this.sweep_after(if has_more { PAUSE } else { EVERY }, context);
            });
            context.spawn(next);
        });
    }
}

impl Actor for CommandSweeper {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        self.sweep_after(EVERY, context);
    }
}
