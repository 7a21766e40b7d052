/*
 * Included before drivers/iommu/iommufd/io_pagetable.c, which chooses IOVAs for huge pages where the
 * kernel has them, as x86 has and UML has not. After the headers that ask the same.
 */
#include <linux/dma-buf.h>
#include <linux/interval_tree.h>
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#undef CONFIG_TRANSPARENT_HUGEPAGE
#define CONFIG_TRANSPARENT_HUGEPAGE 1
#undef HPAGE_SIZE
#define HPAGE_SIZE 0x200000UL
