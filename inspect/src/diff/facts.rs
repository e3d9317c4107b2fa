//! A model as facts by name.

use crate::format::text::{record_text, size};
use crate::model::{Context, Model, Route, Unit, pasid_translation_words, translation_type_words};
use std::collections::BTreeMap;

/// Facts by section and name.
pub(super) type Facts = BTreeMap<(u8, String), String>;

/// All facts of a model but for ranges.
pub(super) fn of(model: &Model) -> Facts {
    let mut facts = Facts::new();
    for unit in &model.units {
        of_unit(&mut facts, model, unit);
    }
    for (number, kho) in model.handovers.iter().enumerate() {
        let mut add =
            |name: String, value: String| facts.insert((3, format!("handover {number}{name}")), value);
        add(String::new(), format!("tree at {}, map at {}", kho.at, kho.map));
        for blob in &kho.blobs {
            add(format!(", blob {:?}", blob.name), format!("{} bytes at {}", blob.bytes, blob.at));
        }
        if let Some(metadata) = &kho.metadata {
            let value = format!("{:?}, number {}", metadata.previous_release, metadata.kexec_count);
            add(", outgoing kernel".into(), value);
        }
        for session in kho.luo.iter().flat_map(|luo| &luo.sessions) {
            add(format!(", session {:?}", session.name), format!("{} files", session.count));
            for file in &session.files {
                let memfd = file.memfd.as_ref();
                let folios = memfd.map_or_else(String::new, |memfd| {
                    format!(", {} in {} folios", size(memfd.record.size), memfd.folios)
                });
                let name = format!(", session {:?}, file {:#x}", session.name, file.token);
                add(name, format!("{} at {:#x}{folios}", file.compatible, file.data));
            }
        }
        for (ordinal, located) in kho.records.iter().flat_map(|records| &records.records).enumerate() {
            add(format!(", record {ordinal}"), record_text(&located.record));
        }
    }
    facts
}

fn of_unit(facts: &mut Facts, model: &Model, unit: &Unit) {
    let name = &unit.registers.name;
    let mut add = |section: u8, subject: String, value: String| facts.insert((section, subject), value);
    let on = |on: Option<bool>| match on {
        Some(true) => "on",
        Some(false) => "off",
        None => "not known",
    };
    let mode = unit.mode.map_or_else(|| "not known".to_owned(), |mode| mode.to_string());
    add(0, format!("{name}, translation"), on(unit.translating).into());
    add(0, format!("{name}, mode"), mode);
    if let Some(root) = unit.root_table() {
        add(0, format!("{name}, root table"), root.to_string());
    }
    for table in &unit.context_tables {
        let half = if table.upper { " upper" } else { "" };
        add(0, format!("{name}, context table of bus {:02x}{half}", table.bus), table.at.to_string());
    }
    if let Some(queue) = &unit.queue {
        add(0, format!("{name}, invalidation queue"), format!("{} descriptors at {}", queue.size, queue.at));
    }
    if let Some(table) = &unit.interrupts {
        let value = format!("{}, {} entries at {}", on(table.on), table.size, table.at);
        add(0, format!("{name}, interrupt table"), value);
        for (index, [low, high]) in &table.entries {
            add(2, format!("{name}, interrupt entry {index:5}"), format!("{high:016x}:{low:016x}"));
        }
    }
    for requester in &unit.requesters {
        for attachment in &requester.attachments {
            let (kind, pasid) = match (requester.context, attachment.pasid) {
                (Context::Legacy(entry), _) => {
                    (translation_type_words(entry.translation_type()), String::new())
                }
                (_, Some(pasid)) => {
                    let words = pasid_translation_words(pasid.entry.translation());
                    (words, format!(" PASID {}", pasid.number))
                }
                _ => ("none", String::new()),
            };
            let table = match attachment.route {
                Route::Space(number) => model.spaces.get(number).map_or_else(String::new, |space| {
                    format!(", {} levels from {}", space.top.levels, space.top.table)
                }),
                Route::PassThrough | Route::Refused => String::new(),
            };
            let value = format!("{kind}, id {}{table}", attachment.domain_id);
            add(1, format!("{name}, requester {}{pasid}", requester.source), value);
        }
    }
}
