//! The device-tree view and writer against other implementations, against a real KHO root, and against damage.

use dtoolkit::{Node as _, Property as _};
use holdover_spec::fdt::{Block, Fdt, FdtError, MAX_DEPTH, WriteError, Writer};
use proptest::prelude::*;

/// The KHO root of a Linux 7.3.4 kernel that was booted by kexec with one preserved memfd.
const KHO_ROOT: &[u8] = include_bytes!("data/kho-root.fdt");

/// A tree as plain values: properties of the root, and the nodes below it with theirs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Tree {
    root: Properties,
    nodes: Vec<(String, Properties)>,
}
type Properties = Vec<(String, Vec<u8>)>;

fn ours(bytes: &[u8]) -> Result<Tree, FdtError> {
    let properties = |node: holdover_spec::fdt::Node<'_>| -> Properties {
        node.properties().map(|p| (p.name().to_owned(), p.value().to_vec())).collect()
    };
    let fdt = Fdt::parse(bytes)?;
    Ok(Tree {
        root: properties(fdt.root()),
        nodes: fdt.nodes().map(|node| (node.name().to_owned(), properties(node))).collect(),
    })
}

fn theirs(bytes: &[u8]) -> Tree {
    let properties = |node: dtoolkit::fdt::FdtNode<'_>| -> Properties {
        node.properties().map(|p| (p.name().to_owned(), p.value().to_vec())).collect()
    };
    let root = dtoolkit::fdt::Fdt::new(bytes).expect("the second implementation accepts the tree").root();
    Tree {
        root: properties(root),
        nodes: root.children().map(|node| (node.name().to_owned(), properties(node))).collect(),
    }
}

fn written(tree: &Tree, buffer: &mut [u8]) -> Result<usize, WriteError> {
    let mut writer = Writer::new(buffer)?;
    writer.begin_node("")?;
    for (name, value) in &tree.root {
        writer.property(name, value)?;
    }
    for (node, properties) in &tree.nodes {
        writer.begin_node(node)?;
        for (name, value) in properties {
            writer.property(name, value)?;
        }
        writer.end()?;
    }
    writer.end()?;
    Ok(writer.finish()?.len())
}

fn built_elsewhere(tree: &Tree, deeper: bool) -> Vec<u8> {
    let mut writer = vm_fdt::FdtWriter::new().unwrap();
    let root = writer.begin_node("").unwrap();
    for (name, value) in &tree.root {
        writer.property(name, value).unwrap();
    }
    for (name, properties) in &tree.nodes {
        let node = writer.begin_node(name).unwrap();
        for (name, value) in properties {
            writer.property(name, value).unwrap();
        }
        if deeper {
            let child = writer.begin_node("deeper").unwrap();
            writer.property("hidden", &[1]).unwrap();
            writer.end_node(child).unwrap();
        }
        writer.end_node(node).unwrap();
    }
    writer.end_node(root).unwrap();
    writer.finish().unwrap()
}

fn properties() -> impl Strategy<Value = Properties> {
    prop::collection::btree_map("[a-z][a-z-]{0,12}", prop::collection::vec(any::<u8>(), 0..20), 0..5)
        .prop_map(|map| map.into_iter().collect())
}

fn trees() -> impl Strategy<Value = Tree> {
    (properties(), prop::collection::btree_map("[A-Za-z][A-Za-z-]{0,12}", properties(), 0..4))
        .prop_map(|(root, nodes)| Tree { root, nodes: nodes.into_iter().collect() })
}

proptest! {
    #[test]
    fn what_we_write_the_second_implementation_reads(tree in trees()) {
        let mut buffer = vec![0xee; 4096];
        let length = written(&tree, &mut buffer).unwrap();
        prop_assert_eq!(&theirs(&buffer[..length]), &tree);
        // A page with something behind the tree, as KHO hands it over.
        prop_assert_eq!(&ours(&buffer).unwrap(), &tree);
        prop_assert_eq!(Fdt::parse(&buffer).unwrap().total_bytes(), length);
    }

    #[test]
    fn what_others_write_we_read_and_deeper_nodes_stay_out_of_sight(tree in trees(), deeper: bool) {
        prop_assert_eq!(&ours(&built_elsewhere(&tree, deeper)).unwrap(), &tree);
    }

    #[test]
    fn a_buffer_that_is_too_small_is_refused_and_the_exact_one_is_enough(tree in trees()) {
        let mut buffer = vec![0; 4096];
        let length = written(&tree, &mut buffer).unwrap();
        prop_assert_eq!(written(&tree, &mut vec![0; length]), Ok(length));
        prop_assert_eq!(written(&tree, &mut vec![0; length - 1]), Err(WriteError::Full { buffer: length - 1 }));
    }

    #[test]
    fn damaged_bytes_are_refused_or_read_but_never_panic(
        at in 0..KHO_ROOT.len(), value: u8, cut in 0..=KHO_ROOT.len(),
    ) {
        let mut bytes = KHO_ROOT.to_vec();
        bytes[at] = value;
        let _ = ours(&bytes);
        if cut < KHO_ROOT.len() {
            prop_assert!(ours(&KHO_ROOT[..cut]).is_err());
        }
    }
}

#[test]
fn the_real_kho_root_reads_as_the_kernel_left_it() {
    let fdt = Fdt::parse(KHO_ROOT).unwrap();
    assert_eq!(fdt.root().property("compatible").unwrap().as_str(), Some("kho-v4"));
    assert_eq!(fdt.root().property("preserved-memory-map").unwrap().native_u64(), Some(0x77_d000));
    let names: Vec<_> = fdt.nodes().map(|node| node.name()).collect();
    assert_eq!(names, ["LUO", "kexec-metadata"]);
    let luo = fdt.node("LUO").unwrap();
    assert_eq!(luo.property("blob-size").unwrap().native_u64(), Some(0x20));
    assert_eq!(luo.property("preserved-data").unwrap().native_u64(), Some(0xc5_4000));
    assert_eq!(luo.property("preserved-memory-map"), None);
    assert_eq!(ours(KHO_ROOT).unwrap(), theirs(KHO_ROOT));
}

#[test]
fn every_fault_of_the_header_is_named() {
    let with = |offset: usize, word: u32| {
        let mut bytes = KHO_ROOT.to_vec();
        bytes[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
        ours(&bytes).unwrap_err()
    };
    let total = KHO_ROOT.len();
    assert_eq!(with(0, 7), FdtError::Magic { found: 7 });
    assert_eq!(with(4, 286), FdtError::Short { have: total, need: 286 });
    assert_eq!(with(20, 16), FdtError::Version { version: 16, last_compatible: 16 });
    assert_eq!(with(24, 18), FdtError::Version { version: 17, last_compatible: 18 });
    assert_eq!(
        with(8, 0xffff_fffc),
        FdtError::Block { block: Block::Structure, start: 0xffff_fffc, bytes: 0xac, total }
    );
    assert_eq!(with(32, 0x3a), FdtError::Block { block: Block::Strings, start: 0xe4, bytes: 0x3a, total });
    assert_eq!(with(16, 0xe4), FdtError::Torn { offset: 0xe4 }, "no end of the reservations");
    assert_eq!(ours(&KHO_ROOT[..39]).unwrap_err(), FdtError::Short { have: 39, need: 40 });
}

#[test]
fn every_fault_of_the_structure_is_named_with_its_offset() {
    let with = |changes: &[(usize, u32)]| {
        let mut bytes = KHO_ROOT.to_vec();
        for &(offset, word) in changes {
            bytes[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
        }
        ours(&bytes)
    };
    assert_eq!(with(&[(0x40, 5)]), Err(FdtError::Token { offset: 0x40, token: 5 }));
    assert_eq!(with(&[(0x44, 0x9000)]), Err(FdtError::Torn { offset: 0x40 }));
    assert_eq!(with(&[(0x44, u32::MAX)]), Err(FdtError::Torn { offset: 0x40 }));
    assert_eq!(with(&[(0x48, 0x39)]), Err(FdtError::PropertyName { offset: 0x40, string: 0x39 }));
    assert_eq!(
        with(&[(0x48, 0x38)]),
        Err(FdtError::PropertyName { offset: 0x40, string: 0x38 }),
        "empty name"
    );
    assert_eq!(with(&[(0x38, 2)]), Err(FdtError::Nesting { offset: 0x38 }), "an end before the root");
    assert_eq!(with(&[(0xdc, 4)]), Err(FdtError::Nesting { offset: 0xe0 }), "the root is left open");
    assert_eq!(with(&[(0xe0, 4)]), Err(FdtError::Torn { offset: 0xe4 }), "no end token");
    // The first node's end becomes nothing: its properties are followed by a child, then by the root's end.
    assert_eq!(with(&[(0x98, 4)]), Err(FdtError::Nesting { offset: 0xe0 }));
    // Nothing but a node name of letters: it runs on to the next NUL and swallows no more than that.
    assert_eq!(with(&[(0x9c, 0xff00_0000)]), Err(FdtError::Token { offset: 0x9c, token: 0xff00_0000 }));
    assert_eq!(with(&[(0xa0, 0xff00_0000)]), Err(FdtError::Name { offset: 0x9c }));
}

#[test]
fn a_property_behind_a_child_is_refused() {
    let mut buffer = [0; 512];
    let tree = Tree { nodes: vec![("a".into(), vec![("p".into(), vec![])])], ..Tree::default() };
    let length = written(&tree, &mut buffer).unwrap();
    // The child's property at 0x48 and the child's end at 0x54 change places.
    buffer.copy_within(0x48..0x54, 0x4c);
    buffer[0x48..0x4c].copy_from_slice(&2_u32.to_be_bytes());
    assert_eq!(ours(&buffer[..length]), Err(FdtError::Nesting { offset: 0x4c }));
}

#[test]
fn a_writer_out_of_order_says_so_and_goes_on() {
    let mut buffer = [0; 512];
    let mut writer = Writer::new(&mut buffer).unwrap();
    assert_eq!(writer.property_u64("a", 1), Err(WriteError::Order));
    assert_eq!(writer.end(), Err(WriteError::Order));
    assert_eq!(writer.begin_node("not the root"), Err(WriteError::Text));
    writer.begin_node("").unwrap();
    assert_eq!(writer.property_str("a", "b\0c"), Err(WriteError::Text));
    assert_eq!(writer.property_str("", "b"), Err(WriteError::Text));
    writer.property_str("compatible", "kho-v4").unwrap();
    writer.property_u64("number", 0x0123_4567_89ab_cdef).unwrap();
    writer.begin_node("child").unwrap();
    writer.end().unwrap();
    assert_eq!(writer.property_u64("late", 1), Err(WriteError::Order));
    writer.end().unwrap();
    assert_eq!(writer.begin_node(""), Err(WriteError::Order));
    let fdt = Fdt::parse(writer.finish().unwrap()).unwrap();
    assert_eq!(fdt.root().property("compatible").unwrap().as_str(), Some("kho-v4"));
    let number = fdt.root().property("number").unwrap();
    assert_eq!(number.native_u64(), Some(0x0123_4567_89ab_cdef));
    assert_eq!(number.value(), 0x0123_4567_89ab_cdef_u64.to_ne_bytes());
}

#[test]
fn an_open_node_cannot_be_finished() {
    let mut buffer = [0; 128];
    let mut writer = Writer::new(&mut buffer).unwrap();
    writer.begin_node("").unwrap();
    assert_eq!(writer.finish(), Err(WriteError::Order));
}

#[test]
fn nodes_nest_as_deep_as_the_limit_and_no_deeper() {
    let nested = |depth: usize| {
        let mut writer = vm_fdt::FdtWriter::new().unwrap();
        let mut open = vec![writer.begin_node("").unwrap()];
        for _ in 1..depth {
            open.push(writer.begin_node("n").unwrap());
        }
        while let Some(node) = open.pop() {
            writer.end_node(node).unwrap();
        }
        writer.finish().unwrap()
    };
    assert!(ours(&nested(MAX_DEPTH)).is_ok());
    assert!(matches!(ours(&nested(MAX_DEPTH + 1)), Err(FdtError::Nesting { .. })));
}
