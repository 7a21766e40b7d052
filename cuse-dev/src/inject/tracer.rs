//! Threads that trace. One for each process that is traced for long: who waits for a call in one
//! process, which that process can make take for ever, must not keep the others waiting.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use crossbeam_channel::{Sender, bounded, unbounded};

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs jobs in the order in which they are sent. It ends with the last copy of this
/// and the last of its tracees.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<Sender<Job>>);

thread_local! {
    /// The tracer whose thread this is.
    static CURRENT: RefCell<Weak<Sender<Job>>> = const { RefCell::new(Weak::new()) };
}

impl Tracer {
    /// A new thread. `None` when it cannot be had.
    pub fn new() -> Option<Self> {
        let (sender, jobs) = unbounded::<Job>();
        let tracer = Self(Arc::new(sender));
        let current = Arc::downgrade(&tracer.0);
        let run = move || {
            CURRENT.set(current);
            crate::caller::sys::short_turns(0);
            // Short sleeps are short.
            let _ = nix::sys::prctl::set_timerslack(1);
            jobs.into_iter().for_each(|job| job());
        };
        std::thread::Builder::new().name("tracer".into()).spawn(run).ok()?;
        Some(tracer)
    }

    /// Runs `job` on the thread, and waits for it. Must not be called from there. `None` when the
    /// thread is gone.
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> Option<R> {
        let (answer, answered) = bounded(1);
        self.send(move || {
            let _ = answer.send(job());
        });
        answered.recv().ok()
    }

    /// Runs `job` on the thread some time.
    pub fn send(&self, job: impl FnOnce() + Send + 'static) {
        // The thread receives as long as this exists.
        let _ = self.0.send(Box::new(job));
    }

    /// The tracer whose thread this is.
    ///
    /// # Panics
    /// On any other thread: tracing is for tracers.
    pub(super) fn current() -> Self {
        Self(CURRENT.with_borrow(Weak::upgrade).expect("only tracers trace"))
    }
}
