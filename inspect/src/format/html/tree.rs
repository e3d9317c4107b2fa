//! The tree of a unit's tables: root entries, context entries, PASID entries, page tables, to be opened one by one.

use super::route;
use crate::model::{Context, Model, Requester, Unit, pasid_translation_words, translation_type_words};
use crate::tables::MAX_LEVELS;
use maud::{Markup, html};
use spec::SourceId;
use std::collections::BTreeMap;

/// Table frames of a domain that are listed at most.
const FRAMES: usize = 4096;

/// A unit.
pub(super) fn section(model: &Model, number: usize, unit: &Unit) -> Markup {
    let registers = &unit.registers;
    let mode = unit.mode.map_or_else(|| "not known".to_owned(), |mode| mode.to_string());
    let mut buses: BTreeMap<u8, Vec<&Requester>> = BTreeMap::new();
    for requester in &unit.requesters {
        buses.entry(requester.source.bus()).or_default().push(requester);
    }
    html! {
        section {
            h2 { "Unit " (number) ": " (registers.name) " at " code { (format!("{:#x}", registers.base)) } }
            p {
                "mode " (mode)
                @match unit.translating {
                    Some(true) => ", translation on",
                    Some(false) => { ", " strong.bad { "translation off" } },
                    None => "",
                }
                @if let Some(table) = &unit.interrupts {
                    " · interrupt table " code { (table.at) } ", " (table.entries.len()) " of " (table.size) " entries"
                }
                @if let Some(queue) = &unit.queue {
                    " · invalidation queue " code { (queue.at) } ", " (queue.size) " descriptors"
                }
            }
            @if let Some(root) = unit.root_table() {
                details.tree open {
                    summary.table data-phys=(format!("{:x}", root.get())) { "root table " code { (root) } }
                    @for (bus, requesters) in &buses { (bus_tree(model, unit, *bus, requesters)) }
                }
            }
        }
    }
}

fn bus_tree(model: &Model, unit: &Unit, bus: u8, requesters: &[&Requester]) -> Markup {
    let tables = unit.context_tables.iter().filter(|table| table.bus == bus);
    html! {
        details open {
            summary {
                "bus " (format!("{bus:02x}")) ", context table "
                @for table in tables {
                    code.table data-phys=(format!("{:x}", table.at.get())) { (table.at) } " "
                }
            }
            @for requester in requesters { (requester_tree(model, requester)) }
        }
    }
}

fn requester_tree(model: &Model, requester: &Requester) -> Markup {
    let words = requester.context.words();
    html! {
        details {
            summary {
                strong { (requester.source) } " "
                @match (requester.context, requester.attachments.as_slice()) {
                    (Context::Legacy(entry), [only]) => {
                        (translation_type_words(entry.translation_type())) ", id " (only.domain_id) ": "
                        (route(model, only.route))
                    }
                    (_, [only]) => { "one PASID entry, id " (only.domain_id) ": " (route(model, only.route)) }
                    (_, all) => { (all.len()) " PASID entries" }
                }
            }
            p { "context entry at " code { (requester.context_at) } ": "
                code { (format!("{:#018x}:{:#018x}", words[1], words[0])) } }
            @for (start, _) in &requester.pasid_tables {
                p.table data-phys=(format!("{:x}", start.get())) { "PASID directory or table " code { (start) } }
            }
            @for attachment in &requester.attachments {
                @if let Some(pasid) = attachment.pasid {
                    details {
                        summary {
                            "PASID " (pasid.number) ": " (pasid_translation_words(pasid.entry.translation())) ", id "
                            (attachment.domain_id) ": " (route(model, attachment.route))
                        }
                        p { "PASID entry at " code { (pasid.at) } ": "
                            @for word in pasid.entry.raw().iter().take(3) { code { (format!("{word:#x}")) } " " } }
                        (page_tables(model, requester.source, attachment.route))
                    }
                } @else { (page_tables(model, requester.source, attachment.route)) }
            }
        }
    }
}

/// The tables of a domain, by level, at the first of its requesters.
fn page_tables(model: &Model, source: SourceId, route: crate::model::Route) -> Markup {
    let crate::model::Route::Space(number) = route else { return html! {} };
    let Some(space) = model.spaces.get(number) else { return html! {} };
    if let Some((_, first, _)) = model.users[number].first().filter(|(_, first, _)| *first != source) {
        return html! { p { "page tables: see " (first) } };
    }
    html! {
        @for level in (0..MAX_LEVELS).rev() {
            @if space.tables[level] > 0 {
                details {
                    summary { "level " (level) ": " (space.tables[level]) " tables, " (space.leaves[level]) " leaves" }
                    p.frames {
                        @for (at, _) in space.frames.iter().filter(|(_, own)| usize::from(*own) == level).take(FRAMES) {
                            code.table data-phys=(format!("{:x}", at.get())) { (at) } " "
                        }
                    }
                }
            }
        }
    }
}
