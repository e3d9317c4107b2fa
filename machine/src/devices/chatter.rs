//! A requester that asks for one address after another, for ever, whatever comes of it: it fills caches at the worst moment.

use crate::dma::Port;

/// The requester's habits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Habits {
    /// What its requests carry.
    pub source: spec::SourceId,
    /// The addresses that it reads in turn, by chance.
    pub addresses: Vec<u64>,
    /// Shortest and longest time between two reads, in nanoseconds; at least 1.
    pub pause: (u64, u64),
}

/// One such requester.
#[derive(Debug)]
pub struct Chatter {
    habits: Habits,
    due: u64,
}

impl Chatter {
    /// A requester that begins at once.
    #[must_use]
    pub fn new(habits: Habits) -> Self {
        let due = habits.pause.0;
        Self { habits, due }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        (!self.habits.addresses.is_empty()).then_some(self.due)
    }

    pub(crate) fn run(&mut self, port: &mut Port<'_>) {
        let dice = &mut port.fabric.dice;
        let index = dice.between(0, self.habits.addresses.len() as u64 - 1);
        self.due = port.fabric.now + dice.between(self.habits.pause.0.max(1), self.habits.pause.1.max(1));
        // What it reads is of no concern, nor whether it may.
        let _ = port.read(self.habits.addresses[index as usize], &mut [0; 4]);
    }
}
