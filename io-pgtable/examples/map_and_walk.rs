//! Maps some memory in every format, and says what a walk finds: a first look at the crate.

use io_pgtable::{Config, Error, Format, Heap, Prot, Table, for_each_format};

fn show<F: Format>(name: &str, config: Config) -> Result<(), Error> {
    let mut table = Table::<F, _>::new(Heap::new(), config)?;
    let (iova, pa, len) = (0x40_0000, 0x8040_0000, 0x41_0000);
    table.map(iova, pa, len, Prot::READ | Prot::WRITE, u64::MAX)?;
    println!("{name}: {} pages of tables\n{}", table.footprint().0, table.walk(iova + 0x40_1234)?);
    assert_eq!(table.unmap(iova, len)?, len);
    Ok(())
}

macro_rules! rows {
    ($($name:ident: $format:ty, $config:expr;)*) => {
        fn main() -> Result<(), Error> {
            $(show::<$format>(stringify!($name), $config)?;)*
            Ok(())
        }
    };
}

for_each_format!(rows);
