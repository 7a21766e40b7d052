//! Raw entries against values worked out by hand from the manuals that the formats cite.

use io_pgtable::{
    AmdV1, Config, Dump, Error, Format, Heap, Kind, Lpae, MockV1, Prot, RiscV, S390, Table,
    VtdSecond, X86_64,
};

const R: Prot = Prot::READ;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// The leaf that a map of one page writes, and how a dump of the table sees the same.
fn leaf<F: Format>(config: Config, lg2: u32, pa: u64, prot: Prot) -> u64 {
    let mut table = Table::<F, _>::new(Heap::new(), config).unwrap();
    let size = 1u64 << lg2;
    table.map(size, pa, size, prot, size).unwrap();
    let (top, levels) = table.top();
    let fixed = Config { levels, dynamic_top: false, ..config };
    let bits = F::shift(levels - 1) + F::index_lg2(levels - 1);
    let fixed = Config {
        iova_bits: if config.dynamic_top { bits.min(64) } else { config.iova_bits },
        ..fixed
    };
    // A dump copies every word, which takes Miri too long.
    if !cfg!(miri) {
        let walk = Dump::of(&table).walk::<F>(top, &fixed, size).unwrap();
        assert_eq!(walk, table.walk(size).unwrap());
    }
    table.translate(size).unwrap().entry
}

#[test]
fn amd_v1() {
    let leaf = |lg2, pa, prot| leaf::<AmdV1>(AmdV1::config(), lg2, pa, prot);
    // PR, IR, IW and the address.
    assert_eq!(leaf(12, 0x1234_5000, RW), 0x6000_0000_1234_5001);
    assert_eq!(leaf(12, 0x1234_5000, R), 0x2000_0000_1234_5001);
    assert_eq!(leaf(12, 0x1234_5000, RW | Prot::SNOOP), 0x7000_0000_1234_5001);
    // A level's own size has Next Level 0, also above level 1.
    assert_eq!(leaf(21, 0x4000_0000, RW), 0x6000_0000_4000_0001);
    // Next Level 7: 8 KiB has address bit 12 clear, 64 KiB bits 14:12 set and 15 clear.
    assert_eq!(leaf(13, 0x1_0000, RW), 0x6000_0000_0001_0e01);
    assert_eq!(leaf(16, 0x1_0000, RW), 0x6000_0000_0001_7e01);
    assert_eq!(leaf(20, 0x10_0000, RW), 0x6000_0000_0017_fe01);
    assert_eq!(AmdV1::table(2, 0xabc_d000), 0x6000_0000_0abc_d401);
}

#[test]
fn mock() {
    // Addresses count granules of 2 KiB from bit 12 on.
    assert_eq!(leaf::<MockV1>(MockV1::default_pages(), 11, 0x1800, R), 0x2000_0000_0000_3001);
}

#[test]
fn vtd_second() {
    let leaf = |lg2, prot| leaf::<VtdSecond>(VtdSecond::config(), lg2, 0x40_4000_0000, prot);
    assert_eq!(leaf(12, RW), 0x40_4000_0003);
    assert_eq!(leaf(12, Prot::WRITE | Prot::SNOOP), 0x40_4000_0802);
    assert_eq!(leaf(21, R), 0x40_4000_0081);
    assert_eq!(leaf(30, RW), 0x40_4000_0083);
    assert_eq!(VtdSecond::table(3, 0x1000), 0x1003);
}

#[test]
fn x86_64() {
    let leaf = |lg2, prot| leaf::<X86_64>(X86_64::config(), lg2, 0x4000_0000, prot);
    assert_eq!(leaf(12, RW), 0x8000_0000_4000_0007);
    assert_eq!(leaf(12, R | Prot::EXECUTE | Prot::PRIVILEGED), 0x4000_0001);
    assert_eq!(leaf(30, RW | Prot::EXECUTE), 0x4000_0087);
    assert_eq!(X86_64::attrs(RW | Prot::EXECUTE, false), Ok(0x67), "A and D are set already");
    assert_eq!(X86_64::attrs(R | Prot::EXECUTE, false), Ok(0x25), "and D where it can be written");
    assert_eq!(X86_64::attrs(Prot::WRITE, true), Err(Error::Unsupported { prot: Prot::WRITE }));
    assert_eq!(X86_64::table(1, 0x2000), 0x2027);
}

#[test]
fn lpae() {
    type S1 = Lpae<1, 12, 48>;
    let config = S1::config();
    // Page, AttrIndx 1, AP[1], AP[2] and DBM (clean), SH, nG, UXN and PXN.
    let clean = 0x0068_0000_4000_0bc7;
    assert_eq!(leaf::<S1>(config, 12, 0x4000_0000, RW), clean);
    assert_eq!(leaf::<S1>(config, 16, 0x4000_0000, RW), clean | 1 << 52);
    assert_eq!(leaf::<S1>(config, 21, 0x4000_0000, RW), clean & !2);
    // Hardware sets AF and clears AP[2].
    assert_eq!(S1::DIRTY.mark(clean | S1::ACCESSED), 0x0068_0000_4000_0f47);
    assert_eq!(S1::attrs(RW, false), Ok(0x0060_0000_0000_0444));
    type S2 = Lpae<2, 16, 52>;
    // Bits 51:48 of the address are in 15:12; MemAttr 1111, S2AP 01 and DBM, SH, XN 10.
    let page = leaf::<S2>(S2::config(), 16, 0xf_0000_0001_0000, RW);
    assert_eq!(page, 0x0048_0000_0001_f37f);
    type Lpa2 = Lpae<2, 12, 52>;
    // Bits 51:50 are in 9:8, and 49:48 in their place.
    assert_eq!(Lpa2::table(1, 0xd_0000_0000_1000), 0x1_0000_0000_1303);
    assert_eq!((Lpa2::hw_level(4), S2::hw_level(0)), (-1, 3));
}

#[test]
fn riscv() {
    let leaf = |lg2, prot| leaf::<RiscV>(RiscV::sv39(), lg2, 0x8000_0000, prot);
    assert_eq!(leaf(12, RW), 0x2000_0017);
    assert_eq!(leaf(12, R | Prot::EXECUTE | Prot::PRIVILEGED), 0x2000_000b);
    assert_eq!(leaf(16, R), 0x8000_0000_2000_2013);
    assert_eq!(leaf(21, RW | Prot::DEVICE), 0x4000_0000_2000_0017);
    assert_eq!((RiscV::attrs(RW, false), RiscV::attrs(R, false)), (Ok(0xd6), Ok(0x52)));
    assert_eq!(RiscV::table(1, 0x8000_1000), 0x2000_0401);
    assert_eq!(RiscV::kind(0, 0x2000_0401), Kind::Reserved);
    // Of a leaf: W without R, bits 60:54, PBMT 3, N above level 0 and with another size than 64 KiB, and
    // an address that is not a multiple of the page's size.
    let leaf = 0x4000_0017;
    assert_eq!(RiscV::kind(1, leaf), Kind::Leaf);
    for bad in [leaf & !2, leaf | 1 << 54, leaf | 1 << 60, leaf | 3 << 61, leaf | 1 << 63] {
        assert_eq!(RiscV::kind(1, bad), Kind::Reserved, "{bad:#x}");
    }
    assert_eq!(RiscV::kind(1, leaf | 1 << 18), Kind::Reserved);
    assert_eq!(RiscV::kind(0, leaf | 1 << 18), Kind::Leaf);
    assert_eq!(RiscV::kind(0, leaf | 1 << 63 | 4 << 10), Kind::Reserved);
    // Of a table: U, A, D, bits 63:54.
    for bit in [4, 6, 7, 54, 60, 61, 62, 63] {
        assert_eq!(RiscV::kind(1, 0x2000_0401 | 1 << bit), Kind::Reserved, "bit {bit}");
    }
}

#[test]
fn s390() {
    let leaf = |prot| leaf::<S390>(S390::config(), 12, 0x1234_5000, prot);
    assert_eq!(leaf(RW), 0x1234_5000);
    assert_eq!(leaf(R), 0x1234_5200);
    assert_eq!((S390::absent(0), S390::absent(1), S390::absent(4)), (0x400, 0x20, 0x2c));
    assert_eq!((S390::table(1, 0x1800), S390::table(2, 0x4000)), (0x1800, 0x4007));
}

#[test]
fn dumps_can_be_broken() {
    let mut dump = Dump::new();
    let config = VtdSecond::config();
    let missing = |entry| Err(Error::Malformed { iova: 0, entry });
    assert_eq!(dump.walk::<VtdSecond>(0x1000, &config, 0), missing(0x1000));
    dump.add(0x1000, vec![0x1003; 512]);
    let walk = dump.walk::<VtdSecond>(0x1000, &config, 0).unwrap();
    assert_eq!(walk.steps.len(), 4, "a table that points at itself ends with the levels");
    assert_eq!(dump.walk::<VtdSecond>(u64::MAX - 7, &config, u64::MAX >> 16).map(|_| ()), {
        Err(Error::Malformed { iova: u64::MAX >> 16, entry: u64::MAX - 7 })
    });
}
