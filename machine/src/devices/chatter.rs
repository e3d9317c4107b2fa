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
    /// It does not read: it asks for pages (PRI), while that is on.
    asks_for_pages: bool,
}

impl Chatter {
    /// A requester that begins at once.
    #[must_use]
    pub fn new(habits: Habits) -> Self {
        let due = habits.pause.0;
        Self { habits, due, asks_for_pages: false }
    }

    /// A function that asks for the pages of these addresses.
    #[must_use]
    pub fn asking_for_pages(habits: Habits) -> Self {
        Self { asks_for_pages: true, ..Self::new(habits) }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        (!self.habits.addresses.is_empty()).then_some(self.due)
    }

    pub(crate) fn run(&mut self, port: &mut Port<'_>) {
        let dice = &mut port.fabric.dice;
        let index = dice.between(0, self.habits.addresses.len() as u64 - 1);
        self.due = port.fabric.now + dice.between(self.habits.pause.0.max(1), self.habits.pause.1.max(1));
        let address = self.habits.addresses[index as usize];
        if self.asks_for_pages {
            port.ask_page(address);
        } else {
            // What it reads is of no concern, nor whether it may.
            let _ = port.read(address, &mut [0; 4]);
        }
    }
}
