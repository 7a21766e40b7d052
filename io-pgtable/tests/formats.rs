//! One suite over every format. A new row in the crate's list of formats is tested by all of it.
//!
//! Under Miri the counts are small, and formats with tables of more than 512 entries leave out what goes
//! over whole tables, so that the suite ends.

mod suite;

use io_pgtable::for_each_format;

macro_rules! rows {
    ($($name:ident: $format:ty, $config:expr;)*) => {$(
        mod $name {
            #[test]
            fn corners() {
                crate::suite::corners::every_size_at_both_ends::<$format>($config);
                if crate::suite::whole_tables::<$format>() {
                    crate::suite::corners::refusals::<$format>($config);
                    crate::suite::corners::no_tables_stay_in_the_way::<$format>($config);
                    crate::suite::corners::the_table_nearby_goes_away::<$format>($config);
                }
            }

            #[test]
            fn failures() {
                crate::suite::failures::map::<$format>($config);
                crate::suite::failures::cut::<$format>($config);
            }

            #[test]
            fn marks() {
                crate::suite::marks::by_granule::<$format>($config);
                if crate::suite::whole_tables::<$format>() {
                    crate::suite::marks::cut_and_merge::<$format>($config);
                }
                crate::suite::marks::untracked::<$format>($config);
            }

            #[test]
            fn threads() {
                crate::suite::threads::translate_while_mapping::<$format>($config);
                if crate::suite::whole_tables::<$format>() {
                    crate::suite::threads::write_while_resizing::<$format>($config);
                }
            }

            #[test]
            fn random() {
                crate::suite::random::against_oracle::<$format>($config);
            }

            #[test]
            fn entries() {
                crate::suite::entries::round_trips::<$format>($config);
            }
        }
    )*};
}

for_each_format!(rows);
