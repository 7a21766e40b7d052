//! The call that a thread waits in, in case the thread is needed while the call is answered.
//!
//! A thread that waits for its answer cannot be stopped: the kernel lets nothing but death
//! interrupt it. Where something has to run in it (making its process's helper), the front end
//! [lets it go](Pending::new) with a result that it never sees: a stop is waiting on its way out
//! of the kernel. It stays stopped until [`Pending::finish`] gives it the real result.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use engine::Errno;
use parking_lot::Mutex;

use crate::inject::{Tracee, on_tracer};

/// How long a thread that was let go may take to its stop.
const PATIENCE: Duration = Duration::from_secs(30);

thread_local! {
    static CURRENT: RefCell<Option<Arc<Pending>>> = const { RefCell::new(None) };
}

type LetGo = Box<dyn FnOnce() -> Result<(), Errno> + Send>;

/// A thread's unanswered call.
pub struct Pending {
    tid: u32,
    state: Mutex<State>,
}

enum State {
    /// It waits for the answer.
    Waits(LetGo),
    /// It was let go, and is stopped.
    Stopped(Box<Tracee>),
    /// It was answered, or is gone.
    Over,
}

impl Pending {
    /// The call of the thread `tid`. `let_go` answers it with `-ERESTARTNOINTR` (-513), so that
    /// should this process die before the real answer, the call is made again.
    pub fn new(tid: u32, let_go: impl FnOnce() -> Result<(), Errno> + Send + 'static) -> Arc<Self> {
        Arc::new(Self { tid, state: Mutex::new(State::Waits(Box::new(let_go))) })
    }

    /// Runs `serve`, which answers this call, with the call known to the memory of its caller.
    pub fn around<R>(self: &Arc<Self>, serve: impl FnOnce() -> R) -> R {
        let before = CURRENT.replace(Some(self.clone()));
        let result = serve();
        CURRENT.set(before);
        result
    }

    /// The call that this thread is answering.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// The thread that waits.
    pub(crate) fn tid(&self) -> u32 {
        self.tid
    }

    /// Runs `with` in the thread, stopped and ready for calls. Runs on the tracer.
    pub(crate) fn with_thread<R>(
        &self,
        with: impl FnOnce(&mut Tracee) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let mut state = self.state.lock();
        if let State::Waits(_) = &*state {
            let tracee = Tracee::seize(self.tid, 0)?;
            tracee.interrupt()?;
            let State::Waits(let_go) = std::mem::replace(&mut *state, State::Over) else {
                return Err(Errno::EBUSY);
            };
            // From here on the thread has no other answer than ours. Where letting go fails it
            // was killed.
            let mut stopped = let_go().map(|()| tracee);
            if let Ok(tracee) = &mut stopped {
                tracee.wait(PATIENCE)?;
                tracee.begin()?;
            }
            *state = State::Stopped(Box::new(stopped?));
        }
        match &mut *state {
            State::Stopped(tracee) => with(tracee),
            _ => Err(Errno::ESRCH),
        }
    }

    /// Gives a thread that was let go its result (a value or -errno) and lets it run. False when
    /// it still waits, and the front end has to answer as usual.
    pub fn finish(self: &Arc<Self>, result: i64) -> bool {
        if matches!(&*self.state.lock(), State::Waits(_)) {
            return false;
        }
        let call = self.clone();
        on_tracer(move || {
            let state = std::mem::replace(&mut *call.state.lock(), State::Over);
            let State::Stopped(mut tracee) = state else { return };
            if let Err(error) = tracee.end(Some(result)).and_then(|()| tracee.detach()) {
                tracing::debug!(tid = call.tid, %error, "the caller died in its call");
            }
        });
        true
    }
}
