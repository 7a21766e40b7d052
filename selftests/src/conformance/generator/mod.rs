//! Makes programs: a call at a time, from a seed and from what the calls before it answered.
//!
//! A program has a theme, which says what it mostly does, and begins with what the theme needs. Each
//! call is a recipe's (one file for each part of the uAPI): a valid one as far as [`state`] knows,
//! with what to remember if it succeeds. [`hostile`] then spoils some.

mod access;
mod bounds;
mod device;
mod dirty;
mod draft;
mod faults;
mod hostile;
mod ioas;
mod nesting;
mod process;
mod state;
mod vfio;

use super::reply::Reply;
use super::rng::Rng;
use super::step::{Call, Step, Value};
use state::State;

/// What to remember of a call, once its reply is there.
type Learn = Box<dyn FnOnce(&mut State, &Reply, u32) + Send>;

/// A call that a recipe made.
pub(crate) struct Made {
    call: Call,
    learn: Option<Learn>,
}

impl From<Call> for Made {
    fn from(call: Call) -> Self {
        Self { call, learn: None }
    }
}

impl Call {
    /// The call, and what to do with its reply (and its number) if it succeeds.
    fn then(self, learn: impl FnOnce(&mut State, &Reply, u32) + Send + 'static) -> Made {
        Made { call: self, learn: Some(Box::new(learn)) }
    }
}

/// Makes a call, where the state has what it takes.
type Recipe = fn(&mut State, &mut Rng) -> Option<Made>;

/// What a program mostly does, each with the weight of each part's recipes.
struct Theme {
    /// Calls that it begins with.
    prelude: &'static [Recipe],
    /// Weights, in the order of [`PARTS`].
    weights: [u64; PARTS.len()],
}

/// The parts of the uAPI, each with its recipes and their weights.
const PARTS: [&[(u64, Recipe)]; 9] = [
    ioas::RECIPES,
    device::RECIPES,
    dirty::RECIPES,
    access::RECIPES,
    nesting::RECIPES,
    faults::RECIPES,
    vfio::RECIPES,
    process::RECIPES,
    hostile::RECIPES,
];

const THEMES: &[Theme] = &[
    //                                    ioas dev dirty acc nest fault vfio proc host
    Theme { prelude: &[ioas::alloc, device::mock], weights: [40, 20, 5, 10, 5, 3, 3, 4, 5] },
    Theme { prelude: &[ioas::alloc], weights: [70, 5, 0, 8, 0, 0, 5, 6, 5] },
    Theme {
        prelude: &[ioas::alloc, dirty::no_huge_pages, device::mock, dirty::tracked],
        weights: [25, 12, 40, 2, 0, 0, 0, 2, 3],
    },
    Theme { prelude: &[ioas::alloc, access::create], weights: [35, 5, 0, 45, 0, 0, 2, 8, 4] },
    Theme {
        prelude: &[
            ioas::alloc,
            device::mock,
            device::parent,
            nesting::viommu,
            nesting::vdevice,
            nesting::event_queue,
            nesting::nested_by_viommu,
            nesting::attach,
        ],
        weights: [10, 15, 0, 2, 60, 5, 0, 2, 4],
    },
    Theme {
        prelude: &[
            ioas::alloc,
            device::mock_with_flags,
            faults::queue,
            device::with_queue,
            faults::attach,
        ],
        weights: [8, 35, 0, 0, 8, 40, 0, 2, 3],
    },
    Theme { prelude: &[ioas::alloc, vfio::choose_first], weights: [15, 10, 0, 5, 0, 0, 60, 5, 4] },
    Theme { prelude: &[ioas::alloc, device::mock], weights: [25, 5, 0, 12, 2, 2, 5, 40, 4] },
    Theme { prelude: &[], weights: [10, 10, 4, 10, 10, 8, 10, 8, 40] },
];

/// A program in the making.
pub struct Generator {
    rng: Rng,
    state: State,
    theme: &'static Theme,
    made: u32,
    calls: u32,
    spoil: u64,
    learn: Option<Learn>,
    /// The call made last.
    last: Option<Call>,
}

impl Generator {
    /// The program of `seed`, of `calls` calls.
    pub fn new(seed: u64, calls: u32) -> Self {
        let mut rng = Rng::new(seed);
        let theme = rng.pick(THEMES);
        let spoil = *rng.pick(&[0, 4, 10, 25]);
        let state = State::new(&mut rng);
        Self { rng, state, theme, made: 0, calls, spoil, learn: None, last: None }
    }

    /// A program that goes on from here in its own way, for `calls` calls.
    pub(super) fn branch(&self, way: u64, calls: u32) -> Self {
        let mut rng = self.rng.clone();
        let rng = Rng::new(rng.next() ^ way);
        let made = self.made + 100_000 * way as u32;
        let (state, theme, spoil) = (self.state.clone(), self.theme, self.spoil);
        Self { rng, state, theme, made, calls: made + calls, spoil, learn: None, last: None }
    }

    /// The next call; `None` at the end.
    pub fn step(&mut self) -> Option<Step> {
        if self.made == self.calls {
            return None;
        }
        let number = self.made;
        let (state, rng) = (&mut self.state, &mut self.rng);
        state.number = number;
        let mut made = None;
        if number == 0 {
            made = Some(open());
        } else if let Some(recipe) = self.theme.prelude.get(number as usize - 1) {
            made = recipe(state, rng);
        }
        let mut tries = 0;
        let mut made = loop {
            match made {
                Some(made) => break made,
                None if tries == 200 => break open(),
                None => made = recipe(self.theme, rng)(state, rng),
            }
            tries += 1;
        };
        if number > 0 && rng.chance(self.spoil) {
            hostile::spoil(&mut made.call, state, rng);
        }
        bounds::keep(&mut made.call, state);
        self.made += 1;
        self.learn = made.learn;
        self.last = Some(made.call.clone());
        Some(Step { number, call: made.call })
    }

    /// What the call made last answered.
    pub fn learn(&mut self, reply: &Reply) {
        let (learn, last) = (self.learn.take(), self.last.take());
        if !reply.ok() {
            return;
        }
        if let Some(call) = last {
            bounds::learn(&call, &mut self.state);
        }
        if let Some(learn) = learn {
            learn(&mut self.state, reply, self.made - 1);
        }
    }
}

fn open() -> Made {
    Call::Open { flags: libc::O_RDWR }.then(|state, reply, number| {
        state.contexts.push(Value {
            literal: reply.result as u64,
            from: Some((number, super::step::Source::Result)),
        });
        state.context = state.contexts.len() - 1;
    })
}

/// One of the recipes, by the theme's weights.
fn recipe(theme: &Theme, rng: &mut Rng) -> Recipe {
    let part = PARTS[weighted(&theme.weights, rng)];
    let weights: Vec<u64> = part.iter().map(|(weight, _)| *weight).collect();
    part[weighted(&weights, rng)].1
}

fn weighted(weights: &[u64], rng: &mut Rng) -> usize {
    let mut left = rng.below(weights.iter().sum());
    for (at, weight) in weights.iter().enumerate() {
        if left < *weight {
            return at;
        }
        left -= weight;
    }
    0
}
