//! Choices at random from a seed.

use machine::dice::Dice;

/// A seeded source of choices.
#[derive(Debug, Clone)]
pub struct Chance(Dice);

impl Chance {
    /// Choices that follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Dice::new(seed))
    }

    /// A number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.between(0, end - 1)
    }

    /// True with this probability, in percent.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of several.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// The index of a weight, as often as its share of the sum says.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut left = self.below(weights.iter().sum());
        for (i, weight) in weights.iter().enumerate() {
            if left < *weight {
                return i;
            }
            left -= weight;
        }
        unreachable!("the draw is below the sum of the weights")
    }
}
