//! Makes a program that tells two sides apart as short as it can be.

use super::compare::Sides;
use super::step::{Call, Step};

/// How many programs are tried at most.
const TRIES: usize = 400;

/// The shortest program found whose last call still tells the sides apart in the same way.
pub fn shrink(sides: &mut Sides, steps: Vec<Step>, signature: &str) -> Result<Vec<Step>, String> {
    let mut steps = steps;
    let mut tries = 0;
    let mut chunk = steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut shorter = false;
        // The last one is the one that differs; what can go is before it.
        while at + 1 < steps.len() && tries < TRIES {
            let end = (at + chunk).min(steps.len() - 1);
            let mut fewer = steps.clone();
            fewer.drain(at..end);
            tries += 1;
            if sides.signature(&fewer)?.as_deref() == Some(signature) {
                steps = fewer;
                shorter = true;
            } else {
                at = end;
            }
        }
        if tries >= TRIES || (chunk == 1 && !shorter) {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    children(sides, &mut steps, signature)?;
    Ok(steps)
}

/// Takes calls out of children.
fn children(sides: &mut Sides, steps: &mut Vec<Step>, signature: &str) -> Result<(), String> {
    for at in 0..steps.len() {
        let mut inner = 0;
        while let Call::Child(calls) = &steps[at].call {
            if inner >= calls.len() || calls.len() == 1 {
                break;
            }
            let mut fewer = steps.clone();
            if let Call::Child(calls) = &mut fewer[at].call {
                calls.remove(inner);
            }
            if sides.signature(&fewer)?.as_deref() == Some(signature) {
                *steps = fewer;
            } else {
                inner += 1;
            }
        }
    }
    Ok(())
}
