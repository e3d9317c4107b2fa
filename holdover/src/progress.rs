//! Progress on the terminal while a run goes on: the kernel and the phase that it is in. Nothing where standard error is
//! no terminal.

use indicatif::{ProgressBar, ProgressStyle};
use scenario::event::Event;
use std::io::IsTerminal;
use std::time::Duration;

/// A line that changes as events arrive, and vanishes at the end.
pub struct Progress {
    bar: ProgressBar,
    kernel: String,
}

impl Progress {
    /// Begins with the machine's name.
    #[must_use]
    pub fn begin(machine: &str) -> Self {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message(format!("starting {machine}"));
        Self { bar, kernel: String::new() }
    }

    /// Shows what an event means for the run.
    pub fn note(&mut self, event: &Event) {
        let words = match event {
            Event::Boot { kernel, .. } => {
                self.kernel.clone_from(kernel);
                "runs".to_owned()
            }
            Event::Attached { requester, .. } => format!("attached {requester}"),
            Event::Preserved { requester, .. } => format!("preserved {requester}"),
            Event::Phase { phase, .. } => format!("{phase} is over"),
            Event::Adopted { unit, .. } => format!("adopted {unit}"),
            Event::Refused { step, .. } => format!("refused {step}"),
            Event::Failed { step, .. } => format!("failed at {step}"),
            _ => return,
        };
        self.bar.set_message(format!("{}: {words}", self.kernel));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
