/*
 * Included before drivers/iommu/iommu.c. The mock's devices get their default domain only where the
 * kernel has DMA through IOMMUs, as x86 has and UML has not; nothing else in that file depends on it.
 */
#include <linux/device.h>
#include <linux/iommu.h>
#include <linux/iommu-dma.h>
#include "dma-iommu.h"
#define CONFIG_IOMMU_DMA 1
