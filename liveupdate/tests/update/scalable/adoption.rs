//! The incoming kernel.
use crate::common::Store;
use crate::common::scalable::*;
use crate::common::scene::check;
use liveupdate::host::MaySleep;

#[test]
fn from_preserve_to_finish_the_devices_never_miss_a_translation() {
    let scene = Scene::new();
    let container = scene.update();
    let mut store = Store::of(16);
    let checked = check(&scene.machine, &container, &mut store);
    assert_eq!(checked.violations, 0);
    let mut ctx = MaySleep::at_thread_start();
    let mut ids = Vec::new();
    let mut incoming = checked.adopt(
        &scene.machine,
        &mut ctx,
        &mut |_, id| {
            ids.push(id.0);
            true
        },
        &mut |_| (),
    );
    scene.all_is_well();
    ids.sort_unstable();
    assert_eq!(ids, [7, 8, 9]);
    for token in [GUEST_DOMAIN, SHARED_DOMAIN, PROCESS_DOMAIN] {
        incoming.retrieve_domain(token, &mut |_| (), &mut |_, _| ()).unwrap();
    }
    let mut pasids = Vec::new();
    incoming.retrieve_requester(NIC, &mut |_| (), &mut |p| pasids.push(p)).unwrap();
    incoming.retrieve_requester(GPU, &mut |_| (), &mut |p| pasids.push(p)).unwrap();
    assert_eq!(pasids.iter().map(|p| p.pasid).collect::<Vec<_>>(), [0, 5, 70, 1]);
    assert_eq!(incoming.finish(&mut ctx, &mut |_| ()), 0);
    scene.all_is_well();
}
