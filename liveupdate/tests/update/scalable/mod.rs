//! The same in scalable mode: both halves of a bus, PASID directories and tables, both stages and one below the other.

mod adoption;
mod cut_off;
mod order;
