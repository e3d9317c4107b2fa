//! When a handover cannot be opened: nobody's DMA can be told from anybody else's, so all of it stops.
//!
//! Translation stays on. The tables are found from the root pointer that hardware uses, and every entry is cleared, as a
//! cut-off with nothing preserved does.

use crate::book::Book;
use crate::host::{Host, MaySleep, Unit};
use crate::interrupts;
use crate::prune::{CutOffEvent, prune};
use crate::room::Room;

/// Blocks every requester on every unit that translates, and every interrupt on every unit that remaps them. A unit that does
/// not translate is left alone: there is no gap to guard any more.
pub fn block_all<H: Host>(host: &H, ctx: &mut MaySleep, report: &mut dyn FnMut(CutOffEvent)) {
    let mut nothing = Room::<0>::new();
    let book = Book::new(nothing.storage());
    host.for_each_unit(&mut |unit| {
        if unit.status().tes() {
            unit.locked(ctx, |atomic| prune(host, &book, None, unit, atomic, &|_| false, report));
        }
        unit.locked(ctx, |atomic| interrupts::prune(host, &book, None, unit, atomic, &|_, _| false, report));
    });
}
