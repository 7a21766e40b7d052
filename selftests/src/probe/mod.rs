//! Programs of calls, as text, and what an iommufd answers to them.
//!
//! A program is a line for each step:
//!
//! ```text
//! open f                          opens /dev/iommu; a path may follow
//! region buf 0x4000               maps memory; a word may follow: ro, none, shared, huge
//! memfd m 0x4000                  makes a memfd; `ro` opens it for reading
//! IOMMU_IOAS_ALLOC -> ioas=out_ioas_id
//! IOMMU_IOAS_MAP flags=IOMMU_IOAS_MAP_READABLE ioas_id=$ioas user_va=@buf length=0x1000
//! test MOCK_DOMAIN id=$ioas -> hwpt=out_hwpt_id
//! g.IOMMU_DESTROY id=1            on the descriptor g, not the one opened last
//! for n 0 64 4: IOMMU_IOAS_ALLOC size=$n
//! given: open f; STEP; STEP       the state in which each step of this begins:
//! for b 0 64 1 anew: IOMMU_DESTROY id=1 flip=$b
//! fork: STEP; STEP                in a child process, with what the parent has
//! thread t: STEP                  beside the steps that follow, until `join t`
//! alarm: STEP                     with a signal that ends a call that waits
//! memlock 0x4000                  limits locked memory, and gives up the right to pass it
//! ```
//!
//! A field of a test operation's body may be called `body.NAME`, where the struct around it has the
//! name, too. Besides a struct's own fields a call takes `at=ADDRESS` (where the struct lies),
//! `tail=OFFSET` (a byte of 1 at that offset of the struct) and `flip=BIT` (that bit of the struct the
//! other way).

mod call;
mod machine;
mod process;
mod value;

pub use machine::Machine;
pub use process::close_inherited;

/// What a line begins with that the probe cannot make sense of.
pub const BAD_PROGRAM: &str = "BAD PROGRAM: ";

/// Plays `program`; answers one line for each step, what it was and what came of it.
pub fn play(program: &str) -> Vec<String> {
    let mut machine = Machine::default();
    let mut said = Vec::new();
    for line in program.lines() {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        said.push(match machine.step(line) {
            Ok(result) => format!("{line}: {result}"),
            Err(why) => format!("{line}: {BAD_PROGRAM}{why}"),
        });
    }
    said
}
