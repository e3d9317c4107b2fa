//! What keeps a kernel from going on: the step and the reason, in words.

use alloc::string::{String, ToString};
use core::fmt::Display;

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) step: &'static str,
    pub(crate) why: String,
}

impl Trouble {
    /// Turns an error into trouble at `step`: for `map_err`.
    pub(crate) fn at<E: Display>(step: &'static str) -> impl Fn(E) -> Self {
        move |error| Self { step, why: error.to_string() }
    }

    /// Trouble without an error of its own.
    pub(crate) fn new(step: &'static str, why: &str) -> Self {
        Self { step, why: why.to_string() }
    }
}
