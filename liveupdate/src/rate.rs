//! Messages that a caller can provoke at will are limited in rate.

/// Messages let through per window.
const BURST: u32 = 5;
/// Length of the window in nanoseconds.
const WINDOW: u64 = 5_000_000_000;

/// Lets [`BURST`] messages through per window of five seconds.
#[derive(Debug)]
pub(crate) struct RateLimit {
    since: u64,
    passed: u32,
}

impl RateLimit {
    pub(crate) const fn new() -> Self {
        Self { since: 0, passed: 0 }
    }

    /// Whether a message may go out at `now`, in nanoseconds.
    pub(crate) fn allows(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.since) >= WINDOW {
            *self = Self { since: now, passed: 0 };
        }
        self.passed = self.passed.saturating_add(1);
        self.passed <= BURST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_waits_for_the_next_window() {
        let mut limit = RateLimit::new();
        let passed = (0..100).filter(|i| limit.allows(WINDOW + i)).count();
        assert_eq!(passed, BURST as usize);
        assert!(limit.allows(2 * WINDOW));
    }
}
