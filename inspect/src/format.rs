//! How a model is shown: text for people, JSON for programs, Linux's own columns for comparison, a page to look at.

pub mod debugfs;
pub mod html;
pub mod json;
pub mod text;

use std::io;

/// What writing a format gives back.
pub type Written = io::Result<()>;
