//! The model as a page: one file that needs nothing else, light or dark as the reader prefers.
//!
//! On top a map of physical memory (`map`), then each unit with its tree of tables (`tree`), then domains and
//! handovers. A search field finds an I/O address or a physical address in what the page shows.

mod map;
mod tree;

use crate::format::text::size;
use crate::image::Memory;
use crate::kho::Kho;
use crate::model::{Model, Problem, Route, Space};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/search.js");
/// Ranges of a domain that a page holds at most: it must stay readable.
const RANGES: usize = 20_000;

/// The page for an image of this name.
#[must_use]
pub fn page(memory: &Memory, model: &Model, name: &str) -> String {
    let title = format!("{name}: remapping tables and handover");
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (name) }
                    p.facts { (facts(memory, model)) }
                }
                div.bar { (search()) }
                main {
                    (problems(model))
                    (map::section(memory, model))
                    @for (number, unit) in model.units.iter().enumerate() { (tree::section(model, number, unit)) }
                    @if !model.spaces.is_empty() { (domains(model)) }
                    @for kho in &model.handovers { (handover(kho)) }
                }
                footer { p { "holdover " (env!("CARGO_PKG_VERSION")) } }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

fn facts(memory: &Memory, model: &Model) -> String {
    let requesters: usize = model.units.iter().map(|unit| unit.requesters.len()).sum();
    let leaves: u64 = model.spaces.iter().map(Space::leaf_count).sum();
    format!(
        "{}, {} of memory · units: {} · requesters: {requesters} · domains: {} · leaves: {leaves} · handovers: {}",
        memory.form(),
        size(memory.bytes()),
        model.units.len(),
        model.spaces.len(),
        model.handovers.len(),
    )
}

fn search() -> Markup {
    html! {
        form #search role="search" {
            label for="address" { "Find an address" }
            input #address type="text" placeholder="0xffffd000" autocomplete="off" spellcheck="false";
            select #kind aria-label="Which kind of address" {
                option value="iova" { "I/O address" }
                option value="phys" { "physical address" }
            }
            button type="submit" { "Find" }
        }
        div #found role="status" aria-live="polite" {}
    }
}

fn problems(model: &Model) -> Markup {
    let units = model.units.iter().flat_map(|unit| {
        unit.problems.iter().chain(unit.interrupts.iter().flat_map(|table| &table.problems))
    });
    let handovers = model.handovers.iter().flat_map(|kho| &kho.problems);
    let all: Vec<&Problem> = model.problems.iter().chain(units).chain(handovers).collect();
    let troubles: usize = model.spaces.iter().map(|space| space.troubles.len()).sum();
    if all.is_empty() && troubles == 0 {
        return html! { p.good { "Everything that hardware reads is in the image, and nothing in it is malformed." } };
    }
    html! {
        section.problems {
            h2 { "What is wrong" }
            ul {
                @for problem in all { li { (problem) } }
                @for (number, space) in model.spaces.iter().enumerate() {
                    @for trouble in &space.troubles {
                        li { "domain " (number) ", level " (trouble.level) " at " (trouble.at) ", for "
                            (format!("{:#x}", trouble.iova)) ": " (trouble.fault) }
                    }
                }
            }
        }
    }
}

fn domains(model: &Model) -> Markup {
    html! {
        section {
            h2 { "Domains" }
            @for (number, space) in model.spaces.iter().enumerate() {
                details id=(format!("domain-{number}")) {
                    summary {
                        strong { "domain " (number) } " · " (space.format()) " · " (size(space.mapped)) " mapped · "
                        "leaves: " (space.leaf_count()) " · tables: " (space.table_count())
                    }
                    p { "top table " code { (space.top.table) } " · used by "
                        @for (_, source, pasid) in model.users[number].iter().take(64) {
                            code { (source) @if let Some(pasid) = pasid { @if *pasid != 0 { ":" (pasid) } } } " "
                        }
                    }
                    (ranges(number, space))
                }
            }
        }
    }
}

fn ranges(number: usize, space: &Space) -> Markup {
    let more = space.ranges.len().saturating_sub(RANGES) as u64 + space.ranges_left_off;
    html! {
        div.scroll { table {
            thead { tr { th { "I/O address" } th { "to" } th { "physical" } th { "length" } th { "access" } } }
            tbody {
                @for range in space.ranges.iter().take(RANGES) {
                    tr.range data-domain=(number) data-iova=(format!("{:x}", range.iova))
                        data-phys=(format!("{:x}", range.target.get())) data-bytes=(format!("{:x}", range.bytes)) {
                        td { code { (format!("{:#x}", range.iova)) } }
                        td { code { (format!("{:#x}", range.iova.wrapping_add(range.bytes - 1))) } }
                        td { code { (range.target) } }
                        td { (size(range.bytes)) }
                        td { code { (range.access.letters()) } }
                    }
                }
            }
        } }
        @if more > 0 { p { "and " (more) " more ranges" } }
    }
}

fn handover(kho: &Kho) -> Markup {
    html! {
        section {
            h2 { "Handover at " code { (kho.at) } }
            p {
                (size(kho.preserved.frames().saturating_mul(4096))) " preserved in " (kho.preserved.extents.len())
                " runs · map at " code { (kho.map) }
                @if let Some(metadata) = &kho.metadata {
                    " · from " code { (metadata.previous_release) } ", handover number " (metadata.kexec_count)
                }
            }
            ul {
                @for blob in &kho.blobs {
                    li { "blob " code { (blob.name) } ": " (blob.bytes) " bytes at " code { (blob.at) }
                        @if !blob.preserved { strong.bad { " not preserved" } } }
                }
            }
            details {
                summary { "preserved runs" }
                div.scroll { table { tbody {
                    @for run in kho.preserved.extents.iter().take(RANGES) {
                        tr.preserved data-phys=(format!("{:x}", run.start().get()))
                            data-bytes=(format!("{:x}", run.bytes())) {
                            td { code { (run) } } td { (size(run.bytes())) }
                        }
                    }
                } } }
            }
            @if let Some(luo) = &kho.luo {
                @for session in &luo.sessions {
                    details open {
                        summary { "session " code { (session.name) } ", " (session.files.len()) " files" }
                        ul { @for file in &session.files {
                            li { code { (format!("{:#x}", file.token)) } " " (file.compatible)
                                @if let Some(memfd) = &file.memfd {
                                    ": " (size(memfd.record.size)) " in " (memfd.folios) " folios" }
                            }
                        } }
                    }
                }
            }
            @if let Some(records) = &kho.records {
                details open {
                    summary { "our records (" (records.records.len()) ")"
                        @if records.counts.is_none() { strong.bad { " not sound" } } }
                    ul { @for located in &records.records {
                        li { (crate::format::text::record_text(&located.record)) } } }
                }
            }
        }
    }
}

/// Where a route leads, with a link.
fn route(model: &Model, route: Route) -> Markup {
    match route {
        Route::Space(number) => {
            let mapped = model.spaces.get(number).map_or(0, |space| space.mapped);
            html! { a href=(format!("#domain-{number}")) { "domain " (number) } ", " (size(mapped)) " mapped" }
        }
        Route::PassThrough => html! { strong.bad { "pass-through: reaches all of memory" } },
        Route::Refused => html! { "refused by hardware" },
    }
}
