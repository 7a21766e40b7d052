//! A program on which two sides differed when they played it, and not when they played it again.
//!
//! Chance has a hand in what it was answered, and nobody may see it again: so what each side answered both
//! times is shown.

use std::fmt::Write as _;

use super::compare::{Played, next_difference};
use super::show;

/// What each side answered the first time and the second, in the order of [`lines`].
type Four<'a> = [&'a Played; 4];

/// The answers to call `at`.
fn lines(names: &[&str; 2], played: Four<'_>, at: usize) -> String {
    let mut text = String::new();
    for (side, played) in played.iter().enumerate() {
        let when = if side < 2 { "first" } else { "again" };
        if let Some((step, reply)) = played.get(at) {
            let shown = show::line(&step.call, Some(reply));
            let _ = writeln!(text, "  {:>3} {}, {when}: {shown}", step.number, names[side % 2]);
        }
    }
    text
}

/// The first call that the sides answered differently.
pub(super) fn first(names: &[&str; 2], played: Four<'_>) -> String {
    match next_difference(played[0], played[1], 0) {
        Some(at) => lines(names, played, at),
        None => "  what is kept does not differ".to_owned(),
    }
}

/// All calls; those that were not answered alike all four times by all.
pub(super) fn all(names: &[&str; 2], played: Four<'_>) -> String {
    let mut text = String::new();
    for at in 0..played.iter().map(|played| played.len()).max().unwrap_or(0) {
        let alike = played.iter().all(|one| one.get(at) == played[0].get(at));
        match played[0].get(at).filter(|_| alike) {
            Some((step, reply)) => {
                let shown = show::line(&step.call, Some(reply));
                let _ = writeln!(text, "  {:>3} {shown}", step.number);
            }
            None => text.push_str(&lines(names, played, at)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::reply::Reply;
    use super::super::step::{Call, Step, Value};
    use super::*;

    #[test]
    fn the_call_that_differed_is_shown_four_times() {
        let step = |number, result| {
            let call = Call::Close { fd: Value::from(4_u64) };
            (Step { number, call }, Reply::of(result))
        };
        let usual = vec![step(0, 0), step(1, 0), step(2, 0)];
        let odd = vec![step(0, 0), step(1, -9), step(2, 0)];
        let (names, played) = (["linux", "other"], [&usual, &odd, &usual, &usual]);
        let shown = first(&names, played);
        assert_eq!(shown.lines().count(), 4);
        assert!(shown.lines().all(|line| line.contains("  1 ")), "{shown}");
        assert!(shown.contains("1 other, first: close(4) = EBADF"), "{shown}");
        assert!(shown.contains("1 linux, again: close(4) = 0"), "{shown}");
        assert_eq!(all(&names, played).lines().count(), 6);
        assert!(first(&names, [&usual; 4]).contains("does not differ"));
    }
}
