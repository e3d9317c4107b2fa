//! Codes under the table's names, where there are many of them.

use holdover_spec::dmar::{flag, kind, scope_kind};
use holdover_spec::fault::Reason;
use holdover_spec::interrupt::{delivery, source_check, source_qualifier};
use holdover_spec::kho::{self, luo, radix};
use holdover_spec::regs::*;

use crate::item::Item;

pub(crate) const TABLE_MODE: [(&str, u64); 4] = [
    ("TTM:LEGACY", table_mode::LEGACY),
    ("TTM:SCALABLE", table_mode::SCALABLE),
    ("TTM:RESERVED", table_mode::RESERVED),
    ("TTM:ABORT_DMA", table_mode::ABORT_DMA),
];

pub(crate) const CONTEXT_COMMAND: [(&str, u64); 10] = [
    ("CIRG:GLOBAL", device_granularity::GLOBAL),
    ("CIRG:DOMAIN", device_granularity::DOMAIN),
    ("CIRG:DEVICE", device_granularity::DEVICE),
    ("CAIG:GLOBAL", device_granularity::GLOBAL),
    ("CAIG:DOMAIN", device_granularity::DOMAIN),
    ("CAIG:DEVICE", device_granularity::DEVICE),
    ("FM:NO_MASK", function_mask::NONE),
    ("FM:IGNORE_FN_BIT2", function_mask::BIT_2),
    ("FM:IGNORE_FN_BITS_2_1", function_mask::BITS_2_1),
    ("FM:IGNORE_FN_ALL", function_mask::ALL),
];

pub(crate) const IOTLB_COMMAND: [(&str, u64); 6] = [
    ("IIRG:GLOBAL", iotlb_granularity::GLOBAL),
    ("IIRG:DOMAIN", iotlb_granularity::DOMAIN),
    ("IIRG:PAGE", iotlb_granularity::PAGE),
    ("IAIG:GLOBAL", iotlb_granularity::GLOBAL),
    ("IAIG:DOMAIN", iotlb_granularity::DOMAIN),
    ("IAIG:PAGE", iotlb_granularity::PAGE),
];

pub(crate) const ADDRESS_TYPE: [(&str, u64); 3] = [
    ("AT:UNTRANSLATED", address_type::UNTRANSLATED),
    ("AT:TRANSLATION_REQUEST", address_type::TRANSLATION_REQUEST),
    ("AT:TRANSLATED", address_type::TRANSLATED),
];

pub(crate) const QUEUE_ERROR: [(&str, u64); 8] = [
    ("IQEI:NO_INFO", queue_error::NO_INFO),
    ("IQEI:BAD_TAIL", queue_error::BAD_TAIL),
    ("IQEI:FETCH_ERROR", queue_error::FETCH),
    ("IQEI:BAD_TYPE", queue_error::BAD_TYPE),
    ("IQEI:RESERVED_FIELD", queue_error::RESERVED_FIELD),
    ("IQEI:BAD_WIDTH", queue_error::BAD_WIDTH),
    ("IQEI:TAIL_MISALIGNED", queue_error::TAIL_MISALIGNED),
    ("IQEI:BAD_TTM", queue_error::BAD_TABLE_MODE),
];

pub(crate) const ENHANCED_COMMAND: [(&str, u64); 4] = [
    ("CMD:ENABLE_COUNTERS", enhanced_command::ENABLE_COUNTERS),
    ("CMD:DISABLE_COUNTERS", enhanced_command::DISABLE_COUNTERS),
    ("CMD:FREEZE_COUNTERS", enhanced_command::FREEZE_COUNTERS),
    ("CMD:UNFREEZE_COUNTERS", enhanced_command::UNFREEZE_COUNTERS),
];

pub(crate) const REMAPPED: [(&str, u64); 13] = [
    ("DLM:FIXED", delivery::FIXED),
    ("DLM:LOWEST_PRIORITY", delivery::LOWEST_PRIORITY),
    ("DLM:SMI", delivery::SMI),
    ("DLM:NMI", delivery::NMI),
    ("DLM:INIT", delivery::INIT),
    ("DLM:EXTINT", delivery::EXTINT),
    ("SVT:NONE", source_check::NONE),
    ("SVT:SID_SQ", source_check::SOURCE_ID),
    ("SVT:BUS_RANGE", source_check::BUS_RANGE),
    ("SQ:ALL_16", source_qualifier::ALL),
    ("SQ:IGNORE_BIT2", source_qualifier::NOT_BIT_2),
    ("SQ:IGNORE_BITS_2_1", source_qualifier::NOT_BITS_2_1),
    ("SQ:IGNORE_BITS_2_0", source_qualifier::NOT_BITS_2_0),
];

pub(crate) const DMAR_FLAGS: [(&str, u8); 4] = [
    ("flags:INTR_REMAP", flag::INTR_REMAP),
    ("flags:X2APIC_OPT_OUT", flag::X2APIC_OPT_OUT),
    ("flags:DMA_CTRL_PLATFORM_OPT_IN", flag::DMA_CTRL_PLATFORM_OPT_IN),
    ("flags:REMAP_OPT_OUT", flag::REMAP_OPT_OUT),
];

pub(crate) const DMAR_KINDS: [(&str, u16); 7] = [
    ("type:DRHD", kind::DRHD),
    ("type:RMRR", kind::RMRR),
    ("type:ATSR", kind::ATSR),
    ("type:RHSA", kind::RHSA),
    ("type:ANDD", kind::ANDD),
    ("type:SATC", kind::SATC),
    ("type:SIDP", kind::SIDP),
];

pub(crate) const SCOPE_KINDS: [(&str, u8); 5] = [
    ("type:PCI_ENDPOINT", scope_kind::PCI_ENDPOINT),
    ("type:PCI_SUB_HIERARCHY", scope_kind::PCI_SUB_HIERARCHY),
    ("type:IOAPIC", scope_kind::IOAPIC),
    ("type:HPET", scope_kind::HPET),
    ("type:ACPI_NAMESPACE", scope_kind::ACPI_NAMESPACE),
];

/// Names and numbers of KHO and LUO.
pub(crate) fn kho() -> Item {
    Item::codes_only("kho", "constants")
        .text("KHO_FDT_COMPATIBLE", kho::COMPATIBLE)
        .text("KHO_FDT_MEMORY_MAP_PROP", kho::MEMORY_MAP_PROPERTY)
        .text("KHO_SUB_TREE_PROP", kho::DATA_PROPERTY)
        .text("KHO_SUB_TREE_SIZE_PROP", kho::SIZE_PROPERTY)
        .text("LUO_KHO_ENTRY_NAME", kho::LUO_NODE)
        .text("LUO_ABI_COMPATIBLE", luo::LUO_COMPATIBLE)
        .text("MEMFD_LUO_FH_COMPATIBLE", luo::MEMFD_COMPATIBLE)
        .text("KHO_METADATA_NODE_NAME", kho::METADATA_NODE)
        .number("KHO_KEXEC_METADATA_VERSION", luo::METADATA_VERSION)
        .text("MEMBLOCK_KHO_FDT", kho::MEMBLOCK_NODE)
        .text("MEMBLOCK_KHO_NODE_COMPATIBLE", kho::MEMBLOCK_COMPATIBLE)
        .text("RESERVE_MEM_KHO_NODE_COMPATIBLE", kho::RESERVE_MEM_COMPATIBLE)
        .number("SETUP_KEXEC_KHO", kho::SETUP_DATA_TYPE)
        .number("KHO_BLOCK_SIZE", luo::BLOCK_BYTES)
        .number("KHO_MAX_BLOCKS", luo::MAX_BLOCKS as u64)
        .number("KHO_VMALLOC_ALLOC", luo::VMALLOC_ALLOC)
        .number("KHO_VMALLOC_HUGE_VMAP", luo::VMALLOC_HUGE)
        .number("MEMFD_LUO_FOLIO_DIRTY", luo::FOLIO_DIRTY)
        .number("MEMFD_LUO_FOLIO_UPTODATE", luo::FOLIO_UP_TO_DATE)
        .number("MEMFD_LUO_ALL_SEALS", luo::ALL_SEALS)
        .number("KHO_RADIX_KEY_WIDTH", radix::KEY_BITS)
        .number("KHO_TABLE_SIZE_LOG2", radix::NODE_LOG2)
        .number("KHO_BITMAP_SIZE_LOG2", radix::LEAF_LOG2)
        .number("KHO_TREE_MAX_DEPTH", radix::LEVELS)
        .number("KHO_VMALLOC_SIZE", luo::VMALLOC_CHUNK_PAGES as u64)
        .number("LIVEUPDATE_SESSION_NAME_LENGTH", luo::SESSION_NAME_BYTES as u64)
        .number("LIVEUPDATE_HNDL_COMPAT_LENGTH", luo::HANDLER_NAME_BYTES as u64)
        .number("LIVEUPDATE_FLB_COMPAT_LENGTH", luo::FLB_NAME_BYTES as u64)
}

/// Fault codes: the table's name, ours.
#[rustfmt::skip]
const FAULTS: &[(&str, Reason)] = &[
    ("RESERVED", Reason::NONE),
    ("ROOT_NOT_PRESENT", Reason::ROOT_NOT_PRESENT),
    ("CONTEXT_NOT_PRESENT", Reason::CONTEXT_NOT_PRESENT),
    ("CONTEXT_INVALID", Reason::CONTEXT_INVALID),
    ("ADDRESS_BEYOND_MGAW", Reason::ADDRESS_BEYOND_WIDTH),
    ("WRITE_DENIED", Reason::WRITE_DENIED),
    ("READ_DENIED", Reason::READ_DENIED),
    ("PAGING_ENTRY_ACCESS_ERROR", Reason::PAGING_ENTRY_ACCESS),
    ("ROOT_TABLE_ACCESS_ERROR", Reason::ROOT_ACCESS),
    ("CONTEXT_TABLE_ACCESS_ERROR", Reason::CONTEXT_ACCESS),
    ("ROOT_RESERVED_BITS", Reason::ROOT_RESERVED),
    ("CONTEXT_RESERVED_BITS", Reason::CONTEXT_RESERVED),
    ("PAGING_RESERVED_BITS", Reason::PAGING_RESERVED),
    ("TRANSLATION_TYPE_BLOCKED", Reason::REQUEST_TYPE_BLOCKED),
    ("OUTPUT_IN_INTERRUPT_RANGE", Reason::OUTPUT_IN_INTERRUPT_RANGE),
    ("IR_REQUEST_RESERVED_BITS", Reason::INTERRUPT_RESERVED),
    ("IR_INDEX_TOO_LARGE", Reason::INTERRUPT_INDEX),
    ("IRTE_NOT_PRESENT", Reason::INTERRUPT_NOT_PRESENT),
    ("IRTE_ACCESS_ERROR", Reason::INTERRUPT_ACCESS),
    ("IRTE_RESERVED_BITS", Reason::INTERRUPT_ENTRY_RESERVED),
    ("COMPAT_FORMAT_BLOCKED", Reason::COMPATIBILITY_BLOCKED),
    ("SOURCE_ID_MISMATCH", Reason::INTERRUPT_SOURCE),
    ("POSTED_DESC_ACCESS_ERROR", Reason::POSTED_ACCESS),
    ("POSTED_DESC_RESERVED_BITS", Reason::POSTED_RESERVED),
    ("IR_WITH_BAD_REQUEST_TYPE", Reason::INTERRUPT_REQUEST_TYPE),
    ("SM_ROOT_TABLE_ADDR_ERROR", Reason::SCALABLE_ROOT_POINTER),
    ("SM_TTM_MISMATCH_PASID_REQUEST", Reason::MODE_PASID_REQUEST),
    ("SM_TTM_MISMATCH_PAGE_RESPONSE", Reason::MODE_PAGE_RESPONSE),
    ("SM_ROOT_ADDR_FAULT_4", Reason::ROOT_POINTER_4),
    ("SM_ROOT_ACCESS_ERROR", Reason::SCALABLE_ROOT_ACCESS),
    ("SM_ROOT_NOT_PRESENT", Reason::SCALABLE_ROOT_NOT_PRESENT),
    ("SM_ROOT_RESERVED_BITS", Reason::SCALABLE_ROOT_RESERVED),
    ("SM_CONTEXT_ACCESS_ERROR", Reason::SCALABLE_CONTEXT_ACCESS),
    ("SM_CONTEXT_NOT_PRESENT", Reason::SCALABLE_CONTEXT_NOT_PRESENT),
    ("SM_CONTEXT_RESERVED_BITS", Reason::SCALABLE_CONTEXT_RESERVED),
    ("SM_CONTEXT_INVALID", Reason::SCALABLE_CONTEXT_INVALID),
    ("SM_DTE_CLEAR", Reason::DEVICE_TLB_DISABLED),
    ("SM_PASIDE_CLEAR", Reason::PASID_DISABLED),
    ("SM_PASID_TOO_LARGE", Reason::PASID_TOO_LARGE),
    ("SM_PRE_CLEAR", Reason::PAGE_REQUEST_DISABLED),
    ("SM_RID_PASID_ERROR", Reason::RID_PASID),
    ("SM_PASID_DIR_ACCESS_ERROR", Reason::PASID_DIRECTORY_ACCESS),
    ("SM_PASID_DIR_NOT_PRESENT", Reason::PASID_DIRECTORY_NOT_PRESENT),
    ("SM_PASID_DIR_RESERVED_BITS", Reason::PASID_DIRECTORY_RESERVED),
    ("SM_PASID_ENTRY_ACCESS_ERROR", Reason::PASID_ACCESS),
    ("SM_PASID_ENTRY_NOT_PRESENT", Reason::PASID_NOT_PRESENT),
    ("SM_PASID_ENTRY_RESERVED_BITS", Reason::PASID_RESERVED),
    ("SM_PASID_ENTRY_INVALID", Reason::PASID_INVALID),
    ("SM_ERE_CLEAR", Reason::EXECUTE_DISABLED),
    ("SM_SRE_CLEAR", Reason::SUPERVISOR_DISABLED),
    ("FS_ENTRY_ACCESS_ERROR", Reason::FIRST_STAGE_ACCESS),
    ("FS_ENTRY_NOT_PRESENT", Reason::FIRST_STAGE_NOT_PRESENT),
    ("FS_ENTRY_RESERVED_BITS", Reason::FIRST_STAGE_RESERVED),
    ("FS_TOP_TABLE_ACCESS_ERROR", Reason::FIRST_STAGE_TOP),
    ("FS_NESTED_ADDRESS_BEYOND_WIDTH", Reason::NESTED_BEYOND_WIDTH),
    ("FS_NESTED_TOP_READ_DENIED", Reason::NESTED_TOP_READ_DENIED),
    ("FS_NESTED_READ_DENIED", Reason::NESTED_READ_DENIED),
    ("FS_NESTED_WRITE_DENIED", Reason::NESTED_WRITE_DENIED),
    ("SS_ENTRY_ACCESS_ERROR", Reason::SECOND_STAGE_ACCESS),
    ("SS_PERMISSION_ERROR", Reason::SECOND_STAGE_DENIED),
    ("SS_RESERVED_BITS", Reason::SECOND_STAGE_RESERVED),
    ("SS_TABLE_POINTER_INVALID", Reason::SECOND_STAGE_POINTER),
    ("SS_AD_UPDATE_NOT_POSSIBLE", Reason::SECOND_STAGE_ACCESSED_DIRTY),
    ("SS_FAULT_6", Reason::SECOND_STAGE_6),
    ("ADDRESS_NOT_CANONICAL", Reason::NOT_CANONICAL),
    ("USER_PRIVILEGE_DENIED", Reason::USER_DENIED),
    ("EXECUTE_DENIED", Reason::EXECUTE_DENIED),
    ("SM_ADDRESS_BEYOND_WIDTH", Reason::SCALABLE_BEYOND_WIDTH),
    ("SS_ADDRESS_BEYOND_WIDTH", Reason::SECOND_STAGE_BEYOND_WIDTH),
    ("SM_WRITE_DENIED", Reason::SCALABLE_WRITE_DENIED),
    ("SM_READ_DENIED", Reason::SCALABLE_READ_DENIED),
    ("SM_OUTPUT_IN_INTERRUPT_RANGE", Reason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE),
    ("SM_GENERAL_FAULT_9", Reason::SCALABLE_GENERAL_9),
    ("SM_GENERAL_FAULT_10", Reason::SCALABLE_GENERAL_10),
    ("FS_AD_UPDATE_NOT_POSSIBLE", Reason::FIRST_STAGE_ACCESSED_DIRTY),
    ("FS_AD_UPDATE_FAILED", Reason::FIRST_STAGE_UPDATE),
];

/// Fault codes, each an item of its own.
pub(crate) fn faults() -> Vec<Item> {
    for (name, reason) in Reason::ALL {
        let uses = FAULTS.iter().filter(|(_, used)| used == reason).count();
        assert_eq!(uses, 1, "{name} has {uses} rows");
    }
    FAULTS.iter().map(|(name, reason)| Item::codes_only("fault", *name).number("code", reason.0)).collect()
}
