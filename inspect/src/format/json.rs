//! The model for programs: schema `holdover.inspect/1`.
//!
//! Addresses and register values are strings in hex (`"0x829000"`): they have 64 bits, which not every reader's numbers
//! have. Counts, lengths and ids are numbers. Fields are only ever added within a version of the schema.

use crate::image::Memory;
use crate::kho::{Kho, Memfd, Session};
use crate::model::{
    Attachment, Context, Interrupts, Model, Problem, Queue, Requester, Route, Space, Unit,
    pasid_translation_words, translation_type_words,
};
use crate::reach::{Reach, Way};
use crate::tables::{Stage, Step as Entry};
use crate::translate::{Outcome, Refused, Step, Translation};
use serde_json::{Value, json};
use spec::{Extent, PhysAddr, SourceId};

/// The schema of [`all`].
pub const SCHEMA: &str = "holdover.inspect/1";

fn hex(value: u64) -> Value {
    Value::from(format!("{value:#x}"))
}

fn at(address: PhysAddr) -> Value {
    hex(address.get())
}

fn words(words: &[u64]) -> Value {
    words.iter().map(|word| hex(*word)).collect()
}

fn list<T>(items: &[T], value: impl Fn(&T) -> Value) -> Value {
    items.iter().map(value).collect()
}

/// The whole model; only what concerns `source`, when given.
#[must_use]
pub fn all(memory: &Memory, model: &Model, source: Option<SourceId>) -> Value {
    let concerned = |number: usize| {
        source.is_none_or(|source| model.users[number].iter().any(|(_, user, _)| *user == source))
    };
    let domains: Vec<Value> = (0..)
        .zip(&model.spaces)
        .filter(|(number, _)| concerned(*number))
        .map(|(number, space)| domain(model, number, space))
        .collect();
    json!({
        "schema": SCHEMA,
        "image": {
            "form": memory.form().to_string(),
            "bytes": memory.bytes(),
            "runs": memory.runs().len(),
            "notes": memory.notes(),
        },
        "whole": model.is_whole(),
        "units": list(&model.units, |item| unit(item, source)),
        "domains": domains,
        "handovers": list(&model.handovers, handover),
        "problems": list(&model.problems, problem),
    })
}

fn problem(problem: &Problem) -> Value {
    json!({ "at": at(problem.at), "subject": problem.subject, "what": problem.what })
}

fn unit(unit: &Unit, source: Option<SourceId>) -> Value {
    let registers = &unit.registers;
    let shown: Vec<Value> = unit
        .requesters
        .iter()
        .filter(|requester| source.is_none_or(|source| source == requester.source))
        .map(requester)
        .collect();
    let tables: Vec<Value> = unit
        .context_tables
        .iter()
        .map(|table| json!({ "at": at(table.at), "bus": table.bus, "upper": table.upper }))
        .collect();
    let faults: Vec<Value> = registers
        .faults()
        .iter()
        .map(|(number, record)| {
            json!({
                "record": number,
                "source": record.source().to_string(),
                "page": hex(record.page()),
                "request": format!("{:?}", record.request()).to_lowercase(),
                "reason": record.fr(),
                "reason_words": spec::fault::Reason(record.fr() as u8).words(),
            })
        })
        .collect();
    json!({
        "name": registers.name,
        "register_base": hex(registers.base),
        "version": registers.version().map(|value| hex(u64::from(value.raw()))),
        "cap": registers.cap().map(|value| hex(value.raw())),
        "ecap": registers.ecap().map(|value| hex(value.raw())),
        "gsts": registers.gsts().map(|value| hex(u64::from(value.raw()))),
        "rtaddr": registers.rtaddr().map(|value| hex(value.raw())),
        "irta": registers.irta().map(|value| hex(value.raw())),
        "iqa": registers.iqa().map(|value| hex(value.raw())),
        "translating": unit.translating,
        "mode": unit.mode.map(|mode| mode.to_string()),
        "root_table": unit.root_table().map(at),
        "context_tables": tables,
        "requesters": shown,
        "interrupts": unit.interrupts.as_ref().map(interrupts),
        "queue": unit.queue.as_ref().map(queue),
        "faults": faults,
        "problems": list(&unit.problems, problem),
        "problems_left_off": unit.problems_left_off,
        "pasids_left_off": unit.pasids_left_off,
    })
}

fn requester(requester: &Requester) -> Value {
    let (mode, entry) = match &requester.context {
        Context::Legacy(entry) => ("legacy", words(&entry.raw())),
        Context::Scalable(entry) => ("scalable", words(&entry.raw())),
    };
    json!({
        "source": requester.source.to_string(),
        "root_entry": { "at": at(requester.root_at), "words": words(&requester.root) },
        "context_entry": { "at": at(requester.context_at), "words": entry, "mode": mode },
        "attachments": list(&requester.attachments, |item| attachment(item, &requester.context)),
    })
}

fn attachment(attachment: &Attachment, context: &Context) -> Value {
    let kind = match (context, attachment.pasid) {
        (Context::Legacy(entry), _) => translation_type_words(entry.translation_type()),
        (_, Some(pasid)) => pasid_translation_words(pasid.entry.translation()),
        _ => "none",
    };
    let (route, domain) = match attachment.route {
        Route::Space(number) => ("domain", Some(number)),
        Route::PassThrough => ("pass-through", None),
        Route::Refused => ("refused", None),
    };
    let pasid = attachment.pasid.map(|pasid| {
        json!({
            "pasid": pasid.number,
            "without_pasid": pasid.is_rid_pasid,
            "directory_entry": { "at": at(pasid.directory_at), "word": hex(pasid.directory) },
            "entry": { "at": at(pasid.at), "words": words(&pasid.entry.raw()) },
        })
    });
    json!({
        "pasid": pasid,
        "domain_id": attachment.domain_id,
        "translation": kind,
        "route": route,
        "domain": domain,
    })
}

fn interrupts(table: &Interrupts) -> Value {
    let remapped = table.remapped().map(|(index, entry)| {
        json!({
            "index": index, "format": "remapped", "source": entry.source().to_string(), "check": entry.svt(),
            "qualifier": entry.sq(), "vector": entry.v(), "destination": entry.dst(), "delivery": entry.dlm(),
            "words": words(&entry.raw()),
        })
    });
    let posted = table.posted().map(|(index, entry)| {
        json!({
            "index": index, "format": "posted", "source": SourceId::from_raw(entry.sid() as u16).to_string(),
            "check": entry.svt(), "qualifier": entry.sq(), "vector": entry.vv(),
            "descriptor": at(entry.descriptor()), "words": words(&entry.raw()),
        })
    });
    json!({
        "at": at(table.at),
        "size": table.size,
        "extended": table.extended,
        "on": table.on,
        "entries": remapped.chain(posted).collect::<Vec<_>>(),
        "problems": list(&table.problems, problem),
    })
}

fn queue(queue: &Queue) -> Value {
    let width = if queue.wide { 4 } else { 2 };
    let pending: Vec<Value> = (0..)
        .zip(&queue.descriptors)
        .filter(|(index, _)| queue.is_pending(*index))
        .map(|(index, descriptor)| {
            let kind = crate::model::descriptor_name(descriptor);
            json!({ "index": index, "kind": kind, "words": words(&descriptor[..width]) })
        })
        .collect();
    json!({
        "at": at(queue.at),
        "size": queue.size,
        "wide": queue.wide,
        "head": queue.head,
        "tail": queue.tail,
        "on": queue.on,
        "pending": pending,
        "missing": queue.missing.map(at),
    })
}

fn domain(model: &Model, number: usize, space: &Space) -> Value {
    let users: Vec<Value> = model.users[number]
        .iter()
        .map(|(unit, source, pasid)| json!({ "unit": unit, "source": source.to_string(), "pasid": pasid }))
        .collect();
    let ranges = list(&space.ranges, |range| {
        json!({
            "iova": hex(range.iova),
            "target": at(range.target),
            "bytes": range.bytes,
            "read": range.access.read,
            "write": range.access.write,
            "level": range.level,
        })
    });
    let troubles = list(&space.troubles, |trouble| {
        json!({
            "at": at(trouble.at),
            "level": trouble.level,
            "iova": hex(trouble.iova),
            "what": trouble.fault.to_string(),
        })
    });
    json!({
        "number": number,
        "stage": if space.top.stage == Stage::First { "first" } else { "second" },
        "levels": space.top.levels,
        "top_table": at(space.top.table),
        "through": space.top.through.map(|(table, levels)| json!({ "top_table": at(table), "levels": levels })),
        "users": users,
        "tables": space.tables,
        "leaves": space.leaves,
        "mapped": space.mapped,
        "ranges": ranges,
        "ranges_left_off": space.ranges_left_off,
        "problems": troubles,
        "problems_left_off": space.troubles_left_off,
    })
}

fn extent(extent: &Extent) -> Value {
    json!({ "start": at(extent.start()), "bytes": extent.bytes() })
}

fn handover(kho: &Kho) -> Value {
    let blobs = list(
        &kho.blobs,
        |blob| json!({ "name": blob.name, "at": at(blob.at), "bytes": blob.bytes, "preserved": blob.preserved }),
    );
    let metadata = kho.metadata.as_ref().map(|metadata| {
        json!({
            "version": metadata.version,
            "previous_release": metadata.previous_release,
            "kexec_count": metadata.kexec_count,
        })
    });
    let luo = kho.luo.as_ref().map(|luo| {
        json!({
            "at": at(luo.at),
            "compatible": luo.compatible,
            "updates": luo.updates,
            "sessions": list(&luo.sessions, session),
            "flbs": list(&luo.flbs, |flb| json!({ "name": flb.name, "data": hex(flb.data), "count": flb.count })),
        })
    });
    let records = kho.records.as_ref().map(|records| {
        json!({
            "at": at(records.at),
            "bytes": records.header.bytes,
            "version": records.header.version,
            "sound": records.counts.is_some(),
            "records": list(&records.records, |located| json!({
                "at": at(located.at),
                "bytes": located.bytes,
                "words": super::text::record_text(&located.record),
            })),
        })
    });
    let orders: Vec<Value> = kho
        .preserved
        .by_order
        .iter()
        .map(|(order, count)| json!({ "order": order, "blocks": count }))
        .collect();
    json!({
        "at": at(kho.at),
        "bytes": kho.bytes,
        "memory_map": at(kho.map),
        "blobs": blobs,
        "preserved_frames": kho.preserved.frames(),
        "preserved_blocks": orders,
        "preserved": list(&kho.preserved.extents, extent),
        "preserved_left_off": kho.preserved.left_off,
        "metadata": metadata,
        "luo": luo,
        "records": records,
        "problems": list(&kho.problems, problem),
    })
}

fn session(session: &Session) -> Value {
    let files = list(&session.files, |file| {
        json!({
            "compatible": file.compatible,
            "data": hex(file.data),
            "token": hex(file.token),
            "memfd": file.memfd.as_ref().map(memfd),
        })
    });
    json!({ "name": session.name, "count": session.count, "files": files })
}

fn memfd(memfd: &Memfd) -> Value {
    json!({
        "position": memfd.record.pos,
        "bytes": memfd.record.size,
        "seals": memfd.record.seals,
        "folios": memfd.folios,
        "not_preserved": memfd.not_preserved,
        "runs": list(&memfd.runs, extent),
    })
}

fn entries(path: &[Entry]) -> Value {
    list(path, |entry| json!({ "level": entry.level, "at": at(entry.at), "word": hex(entry.raw) }))
}

/// A translation: schema `holdover.translate/1`.
#[must_use]
pub fn translation(translation: &Translation) -> Value {
    let steps = list(
        &translation.steps,
        |step: &Step| json!({ "what": step.what, "at": step.at.map(at), "words": words(&step.raw), "says": step.says }),
    );
    let refused = |refused: &Refused| {
        json!({
            "reason": refused.reason.map(|reason| reason.0),
            "reason_words": refused.reason.and_then(spec::fault::Reason::words),
            "why": refused.why,
        })
    };
    let verdict = |verdict: &Result<(), Refused>| verdict.as_ref().err().map(refused);
    let outcome = match &translation.outcome {
        Outcome::Translated { target, leaf, read, write } => json!({
            "kind": "translated",
            "target": at(*target),
            "leaf_bytes": leaf,
            "read_refused": verdict(read),
            "write_refused": verdict(write),
        }),
        Outcome::Refused { read, write } => json!({
            "kind": "refused",
            "read_refused": refused(read),
            "write_refused": refused(write),
        }),
        Outcome::Interrupt => json!({ "kind": "interrupt" }),
        Outcome::Unknown { what } => json!({ "kind": "unknown", "what": what }),
    };
    json!({
        "schema": "holdover.translate/1",
        "source": translation.asker.source.to_string(),
        "pasid": translation.asker.pasid,
        "iova": hex(translation.iova),
        "steps": steps,
        "outcome": outcome,
        "fault_recorded": !translation.unrecorded,
    })
}

/// Who reaches a frame: schema `holdover.reach/1`.
#[must_use]
pub fn reach(frame: PhysAddr, roles: &[String], reach: &Reach) -> Value {
    let ways = list(&reach.ways, |way: &Way| {
        json!({
            "unit": way.unit,
            "source": way.source.to_string(),
            "pasid": way.pasid,
            "iova": hex(way.iova),
            "read": way.access.read,
            "write": way.access.write,
            "context_entry": at(way.context_at),
            "pasid_entry": way.pasid_at.map(at),
            "entries": entries(&way.path),
        })
    });
    json!({
        "schema": "holdover.reach/1",
        "frame": at(frame),
        "is": roles,
        "ways": ways,
        "ways_left_off": reach.left_off,
        "uncertain_domains": reach.uncertain,
        "uncertain_units": reach.uncertain_units,
        "units_off": reach.off,
    })
}
