//! Which unit watches a requester: device scopes of the DMAR table, followed through bridges (VT-d 8.3, 8.3.1).

use alloc::vec::Vec;
use spec::dmar::{Dmar, DmarError, Structure, scope_kind};
use spec::{Requester, Segment, SourceId, UnitId};

/// What the driver must know of the machine's buses, as they are numbered now.
pub trait Topology {
    /// If `function` is a PCI-PCI bridge: its secondary and subordinate bus numbers.
    fn bridge(&self, function: Requester) -> Option<(u8, u8)>;
}

/// One DRHD in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitDescription {
    /// The unit.
    pub id: UnitId,
    /// INCLUDE_PCI_ALL: watches everything on its segment that no other unit names.
    pub catch_all: bool,
    /// What it watches by name.
    pub scopes: Vec<Scope>,
}

/// What kind of thing a scope names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopeKind {
    /// One function.
    Endpoint,
    /// A bridge and everything behind it.
    Bridge,
    /// IOAPIC, HPET or a device named by ANDD: the path gives its source-id as it stands.
    SourceId,
}

/// One device scope: a path of device and function numbers from a start bus on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// What it names.
    pub kind: ScopeKind,
    /// Bus that the path starts on.
    pub start_bus: u8,
    /// Device and function of each step; every step but the last is a bridge.
    pub path: Vec<(u8, u8)>,
}

impl Scope {
    /// The function that the path leads to, with bridges as they are numbered now.
    fn target(&self, segment: Segment, topology: &dyn Topology) -> Option<SourceId> {
        let (last, bridges) = self.path.split_last()?;
        let mut bus = self.start_bus;
        for &(device, function) in bridges {
            let (secondary, _) =
                topology.bridge(Requester::new(segment, SourceId::new(bus, device, function)))?;
            bus = secondary;
        }
        Some(SourceId::new(bus, last.0, last.1))
    }

    /// Whether the scope names `source`.
    fn names(&self, segment: Segment, source: SourceId, topology: &dyn Topology) -> bool {
        let Some(target) = self.target(segment, topology) else { return false };
        if target == source {
            return true;
        }
        self.kind == ScopeKind::Bridge
            && topology
                .bridge(Requester::new(segment, target))
                .is_some_and(|(secondary, subordinate)| (secondary..=subordinate).contains(&source.bus()))
    }
}

/// The units that a DMAR table declares, in its order.
///
/// # Errors
/// The table's first defect. Structures and scopes of unknown kinds are passed over.
pub fn units_of(dmar: &Dmar<'_>) -> Result<Vec<UnitDescription>, DmarError> {
    let mut units = Vec::new();
    for structure in dmar.structures() {
        let Structure::Drhd { drhd, scopes } = structure? else { continue };
        let mut known = Vec::new();
        for scope in scopes {
            let scope = scope?;
            let kind = match scope.header.kind {
                scope_kind::PCI_ENDPOINT => ScopeKind::Endpoint,
                scope_kind::PCI_SUB_HIERARCHY => ScopeKind::Bridge,
                scope_kind::IOAPIC | scope_kind::HPET | scope_kind::ACPI_NAMESPACE => ScopeKind::SourceId,
                _ => continue,
            };
            let path = scope.path().iter().map(|step| (step.device, step.function)).collect();
            known.push(Scope { kind, start_bus: scope.header.start_bus, path });
        }
        units.push(UnitDescription { id: drhd.unit(), catch_all: drhd.includes_all(), scopes: known });
    }
    Ok(units)
}

/// Index in `units` of the one that watches `requester`: the one that names it, else the segment's catch-all.
#[must_use]
pub fn unit_of(units: &[UnitDescription], requester: Requester, topology: &dyn Topology) -> Option<usize> {
    let on_segment = |unit: &UnitDescription| unit.id.segment == requester.segment;
    let names = |unit: &UnitDescription| {
        unit.scopes.iter().any(|scope| scope.names(requester.segment, requester.source, topology))
    };
    units
        .iter()
        .position(|unit| on_segment(unit) && names(unit))
        .or_else(|| units.iter().position(|unit| on_segment(unit) && unit.catch_all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Buses, SEGMENT, requester};

    /// Kind, start bus, path.
    type Named<'a> = (ScopeKind, u8, &'a [(u8, u8)]);

    fn unit(base: u64, catch_all: bool, scopes: &[Named<'_>]) -> UnitDescription {
        let scope = |&(kind, start_bus, path): &Named<'_>| Scope { kind, start_bus, path: path.into() };
        let id = UnitId { segment: SEGMENT, register_base: base };
        UnitDescription { id, catch_all, scopes: scopes.iter().map(scope).collect() }
    }

    #[test]
    fn scopes_are_followed_through_bridges_as_they_are_numbered_now() {
        let units = [
            unit(1, true, &[]),
            unit(2, false, &[(ScopeKind::Endpoint, 0, &[(5, 0), (3, 1)])]),
            unit(3, false, &[(ScopeKind::Bridge, 0, &[(6, 0)]), (ScopeKind::SourceId, 0xff, &[(0, 0)])]),
            unit(4, false, &[(ScopeKind::Endpoint, 0, &[(7, 0), (0, 0)]), (ScopeKind::Endpoint, 0, &[])]),
            unit(5, false, &[(ScopeKind::Endpoint, 0, &[(5, 0)])]),
        ];
        let of = |bus, device, function| unit_of(&units, requester(bus, device, function), &Buses);
        assert_eq!(of(1, 3, 1), Some(1), "behind the bridge 00:05.0, which is bus 1");
        assert_eq!(of(1, 3, 0), Some(0));
        assert_eq!(of(0, 5, 0), Some(4), "a path's bridges are not named by it, this one is by another");
        assert_eq!(of(1, 0, 0), Some(0), "what lies behind a bridge that is named as an endpoint is not");
        assert_eq!(of(0, 6, 0), Some(2), "a bridge scope names the bridge");
        assert_eq!(
            (of(2, 0, 0), of(4, 31, 7), of(5, 0, 0)),
            (Some(2), Some(2), Some(0)),
            "and all buses behind it"
        );
        assert_eq!(of(0xff, 0, 0), Some(2), "an IOAPIC's source-id");
        assert_eq!(of(0, 0, 0), Some(0), "a path through what is no bridge names nothing");
    }

    #[test]
    fn a_dmar_table_becomes_units_in_its_order_and_what_is_unknown_is_passed_over() {
        use spec::dmar::build::{Builder, Scope as Built};
        let scope = |kind, start_bus, path| Built { kind, flags: 0, enumeration_id: 0, start_bus, path };
        let first = UnitId { segment: SEGMENT, register_base: 0xfed9_0000 };
        let second = UnitId { segment: Segment(1), register_base: 0xfed9_1000 };
        let mut bytes = [0; 256];
        let mut table = Builder::new(&mut bytes, 39, 0).expect("room");
        let bridge = scope(scope_kind::PCI_SUB_HIERARCHY, 0, &[(5, 0), (1, 0)]);
        let scopes = [bridge, scope(scope_kind::IOAPIC, 0xff, &[(0, 0)]), scope(9, 0, &[(1, 0)])];
        table.drhd(first, 0, 0, &scopes).expect("room");
        table.rmrr(SEGMENT, 0x1000, 0x1fff, &[]).expect("room");
        table.drhd(second, spec::dmar::flag::INCLUDE_PCI_ALL, 0, &[]).expect("room");
        let length = table.finish().expect("table").len();
        let units = units_of(&Dmar::parse(&bytes[..length]).expect("a table")).expect("sound");
        let named = Vec::from([
            Scope { kind: ScopeKind::Bridge, start_bus: 0, path: Vec::from([(5, 0), (1, 0)]) },
            Scope { kind: ScopeKind::SourceId, start_bus: 0xff, path: Vec::from([(0, 0)]) },
        ]);
        let expected = [
            UnitDescription { id: first, catch_all: false, scopes: named },
            UnitDescription { id: second, catch_all: true, scopes: Vec::new() },
        ];
        assert_eq!(units, expected);
    }
}
