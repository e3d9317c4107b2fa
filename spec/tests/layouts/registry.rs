//! What the crate declares, under the table's names.

use holdover_spec::bits::Field;
use holdover_spec::context::{ContextEntry, TranslationType};
use holdover_spec::first_stage::{self, FirstStageEntry};
use holdover_spec::interrupt::{self, *};
use holdover_spec::invalidation::{self as inv, *};
use holdover_spec::kho::{self, luo, radix};
use holdover_spec::regs::*;
use holdover_spec::root::{self, RootEntry, ScalableRootEntry};
use holdover_spec::scalable::{self, *};
use holdover_spec::second_stage::{self, SecondStageEntry};
use holdover_spec::{Frame, context, dmar, regs};

use crate::codes;
use crate::item::{Item, bits, bytes, probe};

/// Every item.
pub(crate) fn items() -> Vec<Item> {
    let mut items = offsets();
    items.extend(registers());
    items.extend(event_registers());
    items.extend(tables());
    items.extend(paging());
    items.extend(descriptors());
    items.extend(interrupts());
    items.extend(dmar_items());
    items.extend(codes::faults());
    items.extend(kho_items());
    items
}

fn offsets() -> Vec<Item> {
    let mut items: Vec<Item> = regs::REGISTERS
        .iter()
        .map(|register| {
            let item = Item::codes_only("regoff", register.name).number("offset", register.offset);
            // The table states no width for the virtual command registers.
            if register.name.starts_with('V') && register.name != "VER" {
                item
            } else {
                item.number("width_bits", register.bits)
            }
        })
        .collect();
    let at = |name: String, offset| Item::codes_only("regoff", name).number("offset", offset);
    let fixed = [
        "64K_00000",
        "16K_80000",
        "16K_A0000",
        "4K_C0000",
        "4K_C8000",
        "4K_D0000",
        "4K_D8000",
        "4K_E0000",
        "4K_E8000",
        "4K_F0000",
        "4K_F8000",
    ];
    items.extend(fixed.iter().zip(offset::MTRR_FIXED).map(|(name, o)| at(format!("MTRR_FIX{name}"), o)));
    for range in 0..10 {
        items.push(at(format!("MTRR_PHYSBASE{range}"), offset::MTRR_VARIABLE + 16 * range));
        items.push(at(format!("MTRR_PHYSMASK{range}"), offset::MTRR_VARIABLE + 16 * range + 8));
    }
    let ecap = Ecap::ZERO.with_iro(0x2c5);
    let cap = Cap::ZERO.with_fro(0x2c5);
    let computed = |name: &str, rule, kept, bits: u32| {
        Item::codes_only("regoff", name).rule("offset", rule, kept).number("width_bits", bits)
    };
    items.push(computed("IVA", "16*ECAP.IRO", ecap.iva_offset() == 0x2c50, Iva::BITS));
    items.push(computed("IOTLB", "16*ECAP.IRO+8", ecap.iotlb_offset() == 0x2c58, IotlbCommand::BITS));
    let record = cap.fault_record_offset(0) == 0x2c50 && cap.fault_record_offset(7) == 0x2cc0;
    items.push(
        computed("FRCD", "16*CAP.FRO+16*i", record, FaultRecord::BITS)
            .number("record_bytes", FaultRecord::BITS / 8),
    );
    items
}

fn registers() -> Vec<Item> {
    let request = |t1, t2| FaultRecord::ZERO.with_t1(t1).with_t2(t2).request();
    vec![
        bits!("reg", "VER", Version),
        bits!("reg", "CAP", Cap),
        bits!("reg", "ECAP", Ecap),
        bits!("reg", "GCMD", Gcmd),
        bits!("reg", "GSTS", Gsts)
            .number("one_shot_status_keep_mask", Gsts::from_raw(u32::MAX).as_command().raw()),
        bits!("reg", "RTADDR", RootAddr).numbers(&codes::TABLE_MODE),
        bits!("reg", "CCMD", Ccmd).numbers(&codes::CONTEXT_COMMAND),
        bits!("reg", "FSTS", Fsts),
        bits!("reg", "FRCD", FaultRecord)
            .called("privileged", "PRIV")
            .probed("IR_INDEX", &probe(128, |w| FaultRecord::from_raw([w[0], w[1]]).interrupt_index()))
            .numbers(&codes::ADDRESS_TYPE)
            .rule("TYPE:WRITE", "T1=0;T2=0", request(false, false) == RequestKind::Write)
            .rule("TYPE:PAGE_REQUEST", "T1=0;T2=1", request(false, true) == RequestKind::Page)
            .rule("TYPE:READ", "T1=1;T2=0", request(true, false) == RequestKind::Read)
            .rule("TYPE:ATOMIC_OP", "T1=1;T2=1", request(true, true) == RequestKind::Atomic),
        bits!("reg", "AFLOG", AdvancedFaultLog),
        bits!("reg", "PMEN", Pmen),
        bits!("reg", "IQH", Iqh),
        bits!("reg", "IQT", Iqt)
            .number("index_shift_128", queue_width::SHIFT_128)
            .number("index_shift_256", queue_width::SHIFT_256),
        bits!("reg", "IQA", Iqa)
            .number("DW:128BIT", queue_width::BITS_128)
            .number("DW:256BIT", queue_width::BITS_256),
        bits!("reg", "ICS", Ics),
        bits!("reg", "IQERCD", Iqercd).numbers(&codes::QUEUE_ERROR),
        bits!("reg", "IRTA", Irta),
        bits!("reg", "PQH", Pqh),
        bits!("reg", "PQT", Pqt),
        bits!("reg", "PQA", Pqa),
        bits!("reg", "PRS", Prs),
        bits!("reg", "IVA", Iva),
        bits!("reg", "IOTLB", IotlbCommand).numbers(&codes::IOTLB_COMMAND),
        bits!("reg", "MTRRCAP", MtrrCap),
        bits!("reg", "MTRRDEF", MtrrDefault),
        bits!("reg", "PERFCAP", PerfCap).partial(),
        bits!("reg", "PERFEVNTCAP", PerfEventCap).partial(),
        bits!("reg", "PERFINTRSTS", PerfInterruptStatus).partial(),
        bits!("reg", "ECMD", EnhancedCommand).partial().numbers(&codes::ENHANCED_COMMAND),
        bits!("reg", "ECRSP", EnhancedResponse).partial(),
        bits!("reg", "ECCAP3", EnhancedCommandCap3).partial(),
    ]
}

fn event_registers() -> Vec<Item> {
    let mut items = Vec::new();
    for event in ["F", "I", "P"] {
        items.push(match event {
            "F" => bits!("reg", "FECTL", Fectl),
            _ => bits!("reg", format!("{event}ECTL"), EventControl),
        });
        items.push(bits!("reg", format!("{event}EDATA"), EventData));
        items.push(bits!("reg", format!("{event}EADDR"), EventAddress));
        items.push(bits!("reg", format!("{event}EUADDR"), EventUpperAddress));
    }
    items
}

fn tables() -> Vec<Item> {
    let tt = |wanted| (0..4).find(|&tt| ContextEntry::ZERO.with_tt(tt).translation_type() == wanted).unwrap();
    let aw = |levels| (0..8).find(|&aw| ContextEntry::ZERO.with_aw(aw).levels() == levels).unwrap();
    let pasid_aw =
        |levels| (0..8).find(|&aw| PasidEntry::ZERO.with_aw(aw).second_stage_levels() == levels).unwrap();
    let fspm =
        |levels| (0..4).find(|&m| PasidEntry::ZERO.with_fspm(m).first_stage_levels() == levels).unwrap();
    let pgtt = |wanted| (0..8).find(|&tt| PasidEntry::ZERO.with_pgtt(tt).translation() == wanted).unwrap();
    vec![
        bits!("table", "root_entry_legacy", RootEntry).number("entries_per_table", root::ENTRIES),
        bits!("table", "root_entry_scalable", ScalableRootEntry)
            .number("context_entries_per_half", scalable::CONTEXT_ENTRIES),
        bits!("table", "context_entry_legacy", ContextEntry)
            .number("TT:SECOND_STAGE_UNTRANSLATED_ONLY", tt(TranslationType::SecondStage))
            .number("TT:SECOND_STAGE_AND_DEVICE_TLB", tt(TranslationType::SecondStageDeviceTlb))
            .number("TT:PASS_THROUGH", tt(TranslationType::PassThrough))
            .number("TT:RESERVED", tt(TranslationType::Reserved))
            .number("AW:39BIT_3LEVEL", aw(3))
            .number("AW:48BIT_4LEVEL", aw(4))
            .number("AW:57BIT_5LEVEL", aw(5))
            .number("entries_per_table", context::ENTRIES),
        bits!("table", "context_entry_scalable", ScalableContextEntry),
        bits!("table", "pasid_dir_entry", PasidDirectoryEntry)
            .rule("index", "PASID[19:6]", pasid_bits(directory_index) == (6..20).collect::<Vec<_>>())
            .rule("table_index", "PASID[5:0]", pasid_bits(table_index) == (0..6).collect::<Vec<_>>()),
        bits!("table", "pasid_entry", PasidEntry)
            .number("PGTT:FIRST_STAGE", pgtt(PasidTranslation::FirstStage))
            .number("PGTT:SECOND_STAGE", pgtt(PasidTranslation::SecondStage))
            .number("PGTT:NESTED", pgtt(PasidTranslation::Nested))
            .number("PGTT:PASS_THROUGH", pgtt(PasidTranslation::PassThrough))
            .number("FSPM:4LEVEL", fspm(4))
            .number("FSPM:5LEVEL", fspm(5))
            .number("AW:39BIT_3LEVEL", pasid_aw(3))
            .number("AW:48BIT_4LEVEL", pasid_aw(4))
            .number("AW:57BIT_5LEVEL", pasid_aw(5)),
    ]
}

/// The bits of a PASID that an index into a table is made of, when the lowest becomes bit 0.
fn pasid_bits(index: fn(u32) -> u64) -> Vec<u32> {
    let bits = probe(32, |words| index(words[0] as u32));
    assert!(bits.iter().enumerate().all(|(place, &bit)| index(1 << bit) == 1 << place));
    bits
}

/// Paging entries: one layout for all levels here, one item for each form in the table.
fn paging() -> Vec<Item> {
    let second = |level| second_stage::span(level) == 1 << (12 + 9 * u32::from(level));
    let second_leaf = |level| SecondStageEntry::ZERO.with_ps(true).is_leaf(level);
    let first_leaf = |level| FirstStageEntry::ZERO.with_ps(true).is_leaf(level);
    let leaves = |leaf: &dyn Fn(u8) -> bool| (0..5).filter(|&level| leaf(level)).eq(0..3);
    let second_present = |raw| SecondStageEntry::from_raw(raw).is_present();
    let first_present = |raw| FirstStageEntry::from_raw(raw).is_present();
    vec![
        second_form("ss_pte_4k", 0, true).ignoring(&["ps"]),
        second_form("ss_pde_2m", 1, true).number("PS", second_leaf(1)),
        second_form("ss_pdpe_1g", 2, true).number("PS", second_leaf(2)),
        second_form("ss_table", 1, false)
            .ignoring(&["emt", "ipat", "d"])
            .number("PS", SecondStageEntry::ZERO.is_leaf(1))
            .rule("leaf_levels", "1;2;3", leaves(&second_leaf))
            .rule("present_rule", "R|W", probe(64, |w| second_present(w[0])) == [0, 1] && second_present(3))
            .number("index_bits_per_level", second_stage::ENTRIES.trailing_zeros())
            .rule("level_shift", "12+9*(level-1)", (0..5).all(second)),
        first_form("fs_pte_4k", 0, true).called("ps", "PAT"),
        first_form("fs_pde_2m", 1, true)
            .probed("PAT", &probe(64, |w| FirstStageEntry::from_raw(w[0]).pat(1)))
            .number("PS", first_leaf(1)),
        first_form("fs_pdpe_1g", 2, true)
            .probed("PAT", &probe(64, |w| FirstStageEntry::from_raw(w[0]).pat(2)))
            .number("PS", first_leaf(2)),
        first_form("fs_table", 1, false)
            .ignoring(&["d", "g"])
            .number("PS", FirstStageEntry::ZERO.is_leaf(1))
            .rule("leaf_levels", "1;2;3", leaves(&first_leaf))
            .rule("present_rule", "P", probe(64, |w| first_present(w[0])) == [0]),
    ]
}

fn second_form(name: &str, level: u8, leaf: bool) -> Item {
    let entry = SecondStageEntry::ZERO.with_ps(leaf);
    let reserved = second_stage::reserved(entry, level, 52, true);
    let address = probe(64, |w| SecondStageEntry::from_raw(w[0] | entry.raw()).address());
    form(name, SecondStageEntry::FIELDS, reserved, &address)
}

fn first_form(name: &str, level: u8, leaf: bool) -> Item {
    let entry = FirstStageEntry::ZERO.with_ps(leaf);
    let reserved = first_stage::reserved(entry, level, 52);
    let address = probe(64, |w| FirstStageEntry::from_raw(w[0] | entry.raw()).address(level));
    form(name, FirstStageEntry::FIELDS, reserved, &address)
}

/// An item for one form of a paging entry: what is reserved in it is no field, and its address is what remains of it.
fn form(name: &str, fields: &[Field], reserved: u64, address: &[u32]) -> Item {
    let kept: Vec<Field> = fields
        .iter()
        .filter(|field| field.name != "addr" && reserved >> field.lo & 1 == 0)
        .copied()
        .collect();
    let address: Vec<u32> = address.iter().copied().filter(|&bit| reserved >> bit & 1 == 0).collect();
    Item::bits("table", name, &kept, 64, &reserved).probed("ADDR", &address)
}

fn descriptors() -> Vec<Item> {
    let page_group = bits!("desc", "page_grp_resp", PageGroupResponse).widened();
    vec![
        bits!("desc", "cc_inv", ContextInvalidate).widened().number("TYPE", inv::kind::CONTEXT).numbers(&[
            ("TYPE_HI", 0),
            ("G:GLOBAL", granularity::GLOBAL),
            ("G:DOMAIN", granularity::DOMAIN),
            ("G:DEVICE", granularity::SELECTIVE),
        ]),
        bits!("desc", "iotlb_inv", IotlbInvalidate).widened().number("TYPE", inv::kind::IOTLB).numbers(&[
            ("TYPE_HI", 0),
            ("G:GLOBAL", granularity::GLOBAL),
            ("G:DOMAIN", granularity::DOMAIN),
            ("G:PAGE", granularity::SELECTIVE),
        ]),
        bits!("desc", "dev_tlb_inv", DeviceTlbInvalidate)
            .widened()
            .called("pfsid_low", "PFSID_3_0")
            .called("pfsid_high", "PFSID_15_4")
            .numbers(&[("TYPE", inv::kind::DEVICE_TLB), ("TYPE_HI", 0)]),
        bits!("desc", "iec_inv", InterruptInvalidate)
            .widened()
            .numbers(&[("TYPE", inv::kind::INTERRUPT), ("TYPE_HI", 0)])
            .number("G:GLOBAL", interrupt_granularity::GLOBAL)
            .number("G:INDEX_SELECTIVE", interrupt_granularity::INDEX),
        bits!("desc", "wait", Wait)
            .widened()
            .called("interrupt", "IF")
            .called("fence", "FN")
            .numbers(&[("TYPE", inv::kind::WAIT), ("TYPE_HI", 0)]),
        bits!("desc", "piotlb_inv", PasidIotlbInvalidate).widened().numbers(&[
            ("TYPE", inv::kind::PASID_IOTLB),
            ("TYPE_HI", 0),
            ("G:PASID_SELECTIVE", pasid_iotlb_granularity::PASID),
            ("G:PAGE_SELECTIVE_IN_PASID", pasid_iotlb_granularity::PAGE),
        ]),
        bits!("desc", "pasid_cache_inv", PasidCacheInvalidate).widened().numbers(&[
            ("TYPE", inv::kind::PASID_CACHE),
            ("TYPE_HI", 0),
            ("G:DOMAIN_SELECTIVE", pasid_cache_granularity::DOMAIN),
            ("G:PASID_SELECTIVE", pasid_cache_granularity::PASID),
            ("G:GLOBAL", pasid_cache_granularity::GLOBAL),
        ]),
        bits!("desc", "pdev_tlb_inv", PasidDeviceTlbInvalidate)
            .widened()
            .called("pfsid_low", "PFSID_3_0")
            .called("pfsid_high", "PFSID_15_4")
            .numbers(&[("TYPE", inv::kind::PASID_DEVICE_TLB), ("TYPE_HI", 0)])
            .number("G:PASID_SELECTIVE", pasid_device_tlb_granularity::PASID)
            .number("G:GLOBAL", pasid_device_tlb_granularity::GLOBAL),
        page_group.numbers(&[
            ("TYPE", inv::kind::PAGE_GROUP_RESPONSE),
            ("TYPE_HI", 0),
            ("RC:SUCCESS", response::SUCCESS),
            ("RC:INVALID_REQUEST", response::INVALID_REQUEST),
            ("RC:FAILURE", response::FAILURE),
        ]),
        Item::bits(
            "desc",
            "page_strm_resp",
            &Descriptor::FIELDS[..1],
            Descriptor::BITS,
            &Descriptor::RESERVED,
        )
        .widened()
        .partial()
        .number("TYPE", inv::kind::PAGE_STREAM_RESPONSE),
        bits!("desc", "page_request", PageRequest)
            .called("data0+data1", "PRIV_DATA")
            .number("TYPE", PAGE_REQUEST_KIND),
    ]
}

fn interrupts() -> Vec<Item> {
    let buses = RemappedEntry::ZERO.with_sid(0x12_34).buses() == (0x12, 0x34);
    let index = |shv| {
        let address = RemappableAddress::ZERO.with_handle_high(true).with_handle_low(0x7ff0).with_shv(shv);
        address.index(RemappableData::ZERO.with_subhandle(0x15))
    };
    let index_rule = index(false) == 0xfff0 && index(true) == 0x1_0005;
    vec![
        bits!("irq", "irte_remapped", RemappedEntry)
            .probed("DST_XAPIC", &probe(128, |w| RemappedEntry::from_raw([w[0], w[1]]).xapic_destination()))
            .number("IM", entry_format::REMAPPED)
            .numbers(&codes::REMAPPED)
            .rule("SVT:bus_range_fields", "15:8;7:0", buses),
        bits!("irq", "irte_posted", PostedEntry)
            .called("pda_low", "PDA_31_6")
            .called("pda_high", "PDA_63_32")
            .number("IM", entry_format::POSTED),
        bits!("irq", "msi_addr_remappable", RemappableAddress)
            .called("handle_high", "HANDLE_15")
            .called("handle_low", "HANDLE_14_0")
            .number("FORMAT", request_format::REMAPPABLE)
            .number("BASE", interrupt::MESSAGE_BASE)
            .rule("index_rule", "HANDLE+SHV*SUBHANDLE", index_rule),
        bits!("irq", "msi_data_remappable", RemappableData),
        bits!("irq", "msi_addr_compat", CompatibilityAddress)
            .called("destid_ext", "DESTID_EXT_14_8")
            .number("FORMAT", request_format::COMPATIBILITY)
            .number("BASE", interrupt::MESSAGE_BASE),
        bits!("irq", "msi_data_compat", CompatibilityData),
        bits!("irq", "ioapic_rte_remappable", IoApicEntry)
            .called("index_high", "INDEX_15")
            .called("index_low", "INDEX_14_0")
            .number("FORMAT", request_format::REMAPPABLE),
        bits!("irq", "posted_intr_desc", PostedDescriptor).called("pir0+pir1+pir2+pir3", "PIR"),
    ]
}

fn dmar_items() -> Vec<Item> {
    use dmar::{
        Andd, Atsr, Drhd, Header, PathEntry, Rhsa, Rmrr, Satc, ScopeHeader, Sidp, StructureHeader, kind,
    };
    vec![
        bytes!("dmar", "table_header", Header)
            .number("revision", dmar::build::REVISION)
            .number("first_structure_offset", dmar::FIRST_STRUCTURE as u64)
            .numbers(&codes::DMAR_FLAGS),
        bytes!("dmar", "structure_header", StructureHeader).numbers(&codes::DMAR_KINDS),
        bytes!("dmar", "drhd", Drhd)
            .number("type", kind::DRHD)
            .number("flags:INCLUDE_PCI_ALL", dmar::flag::INCLUDE_PCI_ALL),
        bytes!("dmar", "rmrr", Rmrr).number("type", kind::RMRR),
        bytes!("dmar", "atsr", Atsr)
            .number("type", kind::ATSR)
            .number("flags:ALL_PORTS", dmar::flag::ALL_PORTS),
        bytes!("dmar", "rhsa", Rhsa).number("type", kind::RHSA),
        bytes!("dmar", "andd", Andd).number("type", kind::ANDD).number("name_offset", Andd::BYTES as u64),
        bytes!("dmar", "satc", Satc)
            .number("type", kind::SATC)
            .number("flags:ATC_REQUIRED", dmar::flag::ATC_REQUIRED),
        bytes!("dmar", "sidp", Sidp).number("type", kind::SIDP),
        bytes!("dmar", "device_scope", ScopeHeader).numbers(&codes::SCOPE_KINDS),
        bytes!("dmar", "scope_path", PathEntry),
    ]
}

fn kho_items() -> Vec<Item> {
    let size_bit = |order| radix::key(Frame::new(0), order) == Some(1 << (52 - order));
    vec![
        codes::kho(),
        bytes!("kho", "kho_block_header_ser", luo::BlockHeader)
            .number("entries_per_block:luo_file_ser", luo::entries_per_block(luo::LuoFile::BYTES) as u64)
            .number(
                "entries_per_block:luo_session_ser",
                luo::entries_per_block(luo::LuoSession::BYTES) as u64,
            ),
        bytes!("kho", "luo_ser", luo::Luo),
        bytes!("kho", "luo_file_ser", luo::LuoFile),
        bytes!("kho", "luo_file_set_ser", luo::LuoFileSet),
        bytes!("kho", "luo_session_ser", luo::LuoSession)
            .called("files", "file_set_ser.files")
            .called("count", "file_set_ser.count"),
        bytes!("kho", "luo_flb_header_ser", luo::FlbHeader),
        bytes!("kho", "luo_flb_ser", luo::Flb),
        bytes!("kho", "kho_vmalloc", luo::Vmalloc),
        bytes!("kho", "kho_vmalloc_chunk", luo::VmallocChunk).called("next", "hdr.next"),
        bytes!("kho", "memfd_luo_ser", luo::Memfd),
        bits!("kho", "memfd_luo_folio_ser", luo::MemfdFolio),
        bytes!("kho", "kho_kexec_metadata", luo::KexecMetadata),
        bytes!("kho", "kho_radix_node", radix::Node),
        bytes!("kho", "kho_radix_leaf", radix::Leaf),
        bits!("kho", "kho_radix_key", radix::Key)
            .called("level0", "level0_bitmap_index")
            .called("level1", "level1_index")
            .called("level2", "level2_index")
            .called("level3", "level3_index")
            .called("level4", "level4_index")
            .called("level5", "level5_index")
            .rule("order_bit_position", "52-order", (0..=52).all(size_bit)),
        bytes!("kho", "kho_data", kho::BootData),
    ]
}
