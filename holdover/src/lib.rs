//! The command `holdover`: shows a live update, and proves what it shows.
//!
//! [`scenarios`] names what can be shown: which machine, and what happens on it.
//!
//! [`update`] is the whole of `holdover update`. It runs the kernels on a machine ([`qemu`] or [`builtin`]) while
//! [`progress`] watches; what the run leaves behind is a [`record`] of events, [`sound`] and [`trace`]. [`judge`] makes a
//! [`report`] of it, which [`table`], [`html`] and plain JSON present.

// The bundle's format is shared with the kernels, which have no std.
extern crate alloc;

pub mod builtin;
pub mod html;
pub mod images;
pub mod judge;
pub mod progress;
pub mod qemu;
pub mod record;
pub mod report;
#[cfg(test)]
mod samples;
pub mod scenarios;
pub mod settings;
pub mod sound;
pub mod table;
pub mod trace;
pub mod update;
