//! Page requests over an update: stopped by the freeze, on again when it fails or is taken back, and otherwise by the next
//! kernel, which is told of them at retrieval.
//!
//! What is sealed is the entry as the jump finds it, with page requests off; that they were on is in the handover.

use crate::error::FreezeError;
use crate::host::{Host, Level, MaySleep, TimedOut};
use crate::mutant::{self, Mutant};
use crate::outgoing::Outgoing;

impl<H: Host> Outgoing<'_, '_, H> {
    /// Stops the page requests of every preserved requester that may ask. On failure [`Self::resume_page_requests`] is due.
    pub(crate) fn stop_page_requests(&mut self, ctx: &mut MaySleep) -> Result<(), FreezeError> {
        for index in 0..self.book.requesters.capacity() {
            let asking = self.book.requesters.get_mut(index).filter(|k| k.entry.allows_page_requests());
            let Some(kept) = asking else { continue };
            // Before the attempt: a stop that fails half way is to be undone as well.
            kept.page_requests = true;
            let (requester, unit) = (kept.requester, kept.unit);
            let stopped = match self.host.page_requests() {
                Some(requests) => requests.stop(ctx, requester),
                None => Err(TimedOut {
                    unit: self.book.units.get(unit).map(|u| u.id).unwrap_or_default(),
                    what: "stopping page requests, which the host no longer does",
                    waited: 0,
                }),
            };
            stopped.map_err(|why| FreezeError::PageRequests { requester, why })?;
            let kept = self.book.requesters.get_mut(index);
            kept.into_iter().for_each(|k| k.entry = k.entry.with_page_requests(false));
        }
        Ok(())
    }

    /// Lets ask again who was stopped. Where that fails the entry allows no page requests, the handover of a later freeze says
    /// that they were on, and the host is told.
    pub(crate) fn resume_page_requests(&mut self, ctx: &mut MaySleep) {
        let Some(requests) = self.host.page_requests().filter(|_| !mutant::on(Mutant::NoResume)) else {
            return;
        };
        for index in 0..self.book.requesters.capacity() {
            let Some(kept) = self.book.requesters.get_mut(index).filter(|k| k.page_requests) else {
                continue;
            };
            match requests.resume(ctx, kept.requester) {
                Ok(()) => {
                    kept.entry = kept.entry.with_page_requests(true);
                    kept.page_requests = false;
                }
                Err(why) => {
                    kept.entry = kept.entry.with_page_requests(false);
                    let who = kept.requester;
                    self.host.log(Level::Error, format_args!("page requests of {who} stay off: {why}"));
                }
            }
        }
    }
}
