//! What a communicator is asked to be: NCCL's configuration, as its `NCCL_CONFIG_INITIALIZER` makes it, for the version
//! that is loaded.
//!
//! The struct only ever grew at its end. A library reads as many bytes as the struct says that it has, and takes no
//! notice of fields that are newer than the version in it. So one layout serves all: for an older library it is cut, to a
//! newer one it says the version that it is of.

use crate::ffi::ncclConfig_t;
use crate::version::Version;
use core::ffi::c_int;
use core::mem::{offset_of, size_of};
use core::ptr::null;

/// The version whose layout `ncclConfig_t` has.
const NEWEST_KNOWN: Version = Version(22_809);
const MAGIC: u32 = 0xcafe_beef;
/// NCCL's word for "not said".
const UNDEFINED: c_int = c_int::MIN;

/// Bytes of the struct, from this version on. Where it did not end on a whole pointer, there is padding behind it.
const SIZES: [(Version, usize); 3] = [
    (Version(22_800), size_of::<ncclConfig_t>()),
    (Version(22_700), offset_of!(ncclConfig_t, channels_per_net_peer)),
    (Version(0), offset_of!(ncclConfig_t, comm_name)),
];

/// A communicator's configuration.
#[derive(Clone, Copy)]
pub struct Config(pub(crate) ncclConfig_t);

impl Config {
    /// All left to NCCL, but for one: no call waits.
    pub fn not_blocking(library: Version) -> Config {
        let known = library.min(NEWEST_KNOWN);
        let (_, size) = SIZES.into_iter().find(|(since, _)| known >= *since).expect("the last row is for all");
        Config(ncclConfig_t {
            size,
            magic: MAGIC,
            version: known.0,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: null(),
            split_share: UNDEFINED,
            traffic_class: UNDEFINED,
            comm_name: null(),
            collnet_enable: UNDEFINED,
            cta_policy: UNDEFINED,
            shrink_share: UNDEFINED,
            nvls_ctas: UNDEFINED,
            channels_per_net_peer: UNDEFINED,
            nvlink_centric_sched: UNDEFINED,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The struct in `nccl.h` of NCCL's releases, from git tags v2.18.1-1 to v2.30.7-1: type and name of each field, and
    /// the first release whose struct ends with it (none: a later field came with it).
    const HEADERS: &[(&str, &str, Option<u32>)] = &[
        ("size_t", "size", None),
        ("unsigned int", "magic", None),
        ("unsigned int", "version", None),
        ("int", "blocking", None),
        ("int", "cgaClusterSize", None),
        ("int", "minCTAs", None),
        ("int", "maxCTAs", None),
        ("pointer", "netName", None),
        ("int", "splitShare", Some(21_801)),
        ("int", "trafficClass", Some(22_602)),
        ("pointer", "commName", None),
        ("int", "collnetEnable", None),
        ("int", "CTAPolicy", None),
        ("int", "shrinkShare", None),
        ("int", "nvlsCTAs", Some(22_703)),
        ("int", "nChannelsPerNetPeer", None),
        ("int", "nvlinkCentricSched", Some(22_803)),
    ];

    /// By C's rules for 64 bits.
    struct ByC {
        /// (name, offset)
        fields: Vec<(&'static str, usize)>,
        /// (release, bytes of its struct)
        sizes: Vec<(u32, usize)>,
    }

    fn by_c() -> ByC {
        let (mut end, mut fields, mut sizes) = (0usize, Vec::new(), Vec::new());
        for (kind, name, release) in HEADERS {
            let bytes = if ["size_t", "pointer"].contains(kind) { 8 } else { 4 };
            let offset = end.next_multiple_of(bytes);
            fields.push((*name, offset));
            end = offset + bytes;
            sizes.extend(release.map(|release| (release, end.next_multiple_of(8))));
        }
        ByC { fields, sizes }
    }

    #[test]
    fn the_fields_lie_where_the_header_has_them() {
        let ours = [
            offset_of!(ncclConfig_t, size),
            offset_of!(ncclConfig_t, magic),
            offset_of!(ncclConfig_t, version),
            offset_of!(ncclConfig_t, blocking),
            offset_of!(ncclConfig_t, cga_cluster_size),
            offset_of!(ncclConfig_t, min_ctas),
            offset_of!(ncclConfig_t, max_ctas),
            offset_of!(ncclConfig_t, net_name),
            offset_of!(ncclConfig_t, split_share),
            offset_of!(ncclConfig_t, traffic_class),
            offset_of!(ncclConfig_t, comm_name),
            offset_of!(ncclConfig_t, collnet_enable),
            offset_of!(ncclConfig_t, cta_policy),
            offset_of!(ncclConfig_t, shrink_share),
            offset_of!(ncclConfig_t, nvls_ctas),
            offset_of!(ncclConfig_t, channels_per_net_peer),
            offset_of!(ncclConfig_t, nvlink_centric_sched),
        ];
        let theirs = by_c().fields;
        assert_eq!(theirs.len(), ours.len());
        for ((name, theirs), ours) in theirs.into_iter().zip(ours) {
            assert_eq!(theirs, ours, "{name}");
        }
    }

    #[test]
    fn each_release_gets_the_bytes_that_it_knows() {
        let sizes = by_c().sizes;
        assert_eq!(sizes, [(21_801, 48), (22_602, 48), (22_703, 72), (22_803, 80)]);
        for (release, bytes) in sizes {
            let Config(config) = Config::not_blocking(Version(release));
            assert_eq!((config.size, config.version), (bytes, release));
        }
    }

    #[test]
    fn a_newer_library_is_told_the_version_of_the_layout() {
        let Config(config) = Config::not_blocking(Version(23_203));
        assert_eq!((config.size, config.version, config.magic), (80, 22_809, 0xcafe_beef));
        assert_eq!((config.blocking, config.min_ctas), (0, -2_147_483_648));
    }
}
