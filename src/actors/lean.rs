//! The context of an actor that does nothing but handle its messages: what a device's actor runs in.
//!
//! A fleet has as many actors as devices, so what each takes counts. actix's own `Context` has room for futures that an
//! actor may start, twice, which makes a task of 512 bytes; and it ends an actor whose address nobody holds, so that each
//! needs a held address, of 80 bytes. A [`LeanContext`] starts no futures and its actor stays until it is dismissed: 176
//! bytes in all (docs/performance.md has the account). Mailbox, addresses, and the order of messages are actix's.
use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll};

use actix::dev::{channel, Envelope, Mailbox, OneshotSender, ToEnvelope};
use actix::prelude::*;
use actix::WeakAddr;

/// Messages that a mailbox holds, beside one of each address: as many as in actix's own actors. Each message of the
/// directory comes by an address of its own, so that none waits; how many there are is bounded by `pace::MAX_IN_FLIGHT`.
pub const MAILBOX: usize = 16;

/// Of an actor's hooks it calls none: such an actor has its constructor and its `Drop`.
pub struct LeanContext<A: Actor<Context = Self>> {
    address: WeakAddr<A>,
    /// `Stopping`: dismissed. `Stopped`: handles nothing more.
    state: ActorState,
}

impl<A: Actor<Context = Self>> LeanContext<A> {
    /// Makes an actor on an arbiter. Where that has ended, the address is closed.
    pub fn start_in_arbiter(arbiter: &ArbiterHandle, make: impl FnOnce() -> A + Send + 'static) -> Addr<A> {
        let (sender, receiver) = channel::channel(MAILBOX);
        let address = Addr::new(sender);
        let context = Self { address: address.downgrade(), state: ActorState::Running };
        arbiter.spawn_fn(move || {
            let life = Life { actor: make(), context, mailbox: Mailbox::new(receiver) };
            // Boxed, since tokio's tasks come in steps of 128 bytes and need 104 for themselves.
            actix_rt::spawn(Box::pin(life));
        });
        address
    }

    /// Lets the actor end once nobody has its address and all is handled that was sent by then. Who dismisses it sees to
    /// it that nobody gets its address from then on.
    pub fn dismiss(&mut self) {
        self.state = ActorState::Stopping;
    }
}

impl<A: Actor<Context = Self>> ActorContext for LeanContext<A> {
    fn stop(&mut self) {
        self.state = ActorState::Stopped;
    }

    fn terminate(&mut self) {
        self.state = ActorState::Stopped;
    }

    fn state(&self) -> ActorState {
        self.state
    }
}

/// Asked of a context that has no room for futures: a bug, which ends the actor as any panic does.
const NO_FUTURES: &str = "a lean actor starts no futures; give it actix's own context";

impl<A: Actor<Context = Self>> AsyncContext<A> for LeanContext<A> {
    fn address(&self) -> Addr<A> {
        self.address.upgrade().unwrap_or_else(|| unreachable!("a mailbox is open while its actor runs"))
    }

    /// # Panics
    /// Always.
    fn spawn<F>(&mut self, _: F) -> SpawnHandle
    where
        F: ActorFuture<A, Output = ()> + 'static,
    {
        panic!("{NO_FUTURES}");
    }

    /// # Panics
    /// Always.
    fn wait<F>(&mut self, _: F)
    where
        F: ActorFuture<A, Output = ()> + 'static,
    {
        panic!("{NO_FUTURES}");
    }

    fn waiting(&self) -> bool {
        self.state == ActorState::Stopped
    }

    fn cancel_future(&mut self, _: SpawnHandle) -> bool {
        false
    }
}

impl<A, M> ToEnvelope<A, M> for LeanContext<A>
where
    A: Actor<Context = Self> + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn pack(message: M, answer: Option<OneshotSender<M::Result>>) -> Envelope<A> {
        Envelope::new(message, answer)
    }
}

/// An actor with all that it runs in.
struct Life<A: Actor<Context = LeanContext<A>>> {
    /// Dropped before the mailbox, so that whoever finds the address closed finds the actor gone.
    actor: A,
    context: LeanContext<A>,
    mailbox: Mailbox<A>,
}

impl<A: Actor<Context = LeanContext<A>>> Future for Life<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<()> {
        let Self { actor, context, mailbox } = self.get_mut();
        mailbox.poll(actor, context, task);
        let is_left = context.state == ActorState::Stopping && !mailbox.connected();
        if is_left {
            // Who let go of the address last may have sent a message just before.
            mailbox.poll(actor, context, task);
        }
        if is_left || context.state == ActorState::Stopped {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::sync::Arc;

    use super::super::device::DeviceActor;
    use super::*;

    #[derive(Default)]
    struct Seen {
        counted: AtomicU32,
        has_ended: AtomicBool,
    }

    struct Counter(Arc<Seen>);

    impl Actor for Counter {
        type Context = LeanContext<Self>;
    }

    impl Drop for Counter {
        fn drop(&mut self) {
            self.0.has_ended.store(true, Ordering::Relaxed);
        }
    }

    enum Ask {
        Count,
        Dismiss,
        Stop,
        Spawn,
    }

    impl Message for Ask {
        type Result = ();
    }

    impl Handler<Ask> for Counter {
        type Result = ();

        fn handle(&mut self, ask: Ask, context: &mut LeanContext<Self>) {
            match ask {
                Ask::Count => drop(self.0.counted.fetch_add(1, Ordering::Relaxed)),
                Ask::Dismiss => context.dismiss(),
                Ask::Stop => context.stop(),
                Ask::Spawn => drop(context.spawn(async {}.into_actor(self))),
            }
        }
    }

    fn start() -> (Addr<Counter>, Arc<Seen>) {
        let seen = Arc::<Seen>::default();
        let actor = Counter(Arc::clone(&seen));
        (LeanContext::start_in_arbiter(&Arbiter::current(), move || actor), seen)
    }

    async fn let_others_run() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn the_actor_of_a_device_fits_the_block_that_it_is_meant_for() {
        // The allocator's next block has 64 bytes.
        assert!(size_of::<Life<DeviceActor>>() <= 48, "{}", size_of::<Life<DeviceActor>>());
    }

    #[actix_rt::test]
    async fn an_actor_whose_address_nobody_holds_stays_and_takes_messages() {
        let (address, seen) = start();
        let weak = address.downgrade();
        address.send(Ask::Count).await.expect("handled");
        drop(address);
        let_others_run().await;
        weak.upgrade().expect("it lives").send(Ask::Count).await.expect("handled");
        assert_eq!(seen.counted.load(Ordering::Relaxed), 2);
        assert!(!seen.has_ended.load(Ordering::Relaxed));
    }

    #[actix_rt::test]
    async fn a_dismissed_actor_ends_once_all_is_handled_and_nobody_has_its_address() {
        let (address, seen) = start();
        address.try_send(Ask::Count).expect("room");
        address.try_send(Ask::Dismiss).expect("room");
        address.try_send(Ask::Count).expect("room");
        let_others_run().await;
        assert!(!seen.has_ended.load(Ordering::Relaxed), "somebody has its address");
        address.try_send(Ask::Count).expect("room");
        drop(address);
        let_others_run().await;
        assert!(seen.has_ended.load(Ordering::Relaxed));
        assert_eq!(seen.counted.load(Ordering::Relaxed), 3);
    }

    #[actix_rt::test]
    async fn an_actor_that_stops_or_asks_for_a_future_is_gone_and_its_address_closed() {
        for ask in [Ask::Stop, Ask::Spawn] {
            let (address, seen) = start();
            let _ = address.send(ask).await;
            let_others_run().await;
            assert!(seen.has_ended.load(Ordering::Relaxed) && !address.connected());
        }
    }
}
