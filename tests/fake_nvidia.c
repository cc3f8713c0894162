/* libnvidia-ml.so.1 and libcuda.so.1 for a machine without a GPU: the functions that the doctor calls, with the
 * signatures of NVIDIA's public headers nvml.h and cuda.h. One H100, driver 590.48.01, CUDA 13.1. */
#include <stdio.h>

typedef int nvmlReturn_t;
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

static int device;

nvmlReturn_t nvmlInit_v2(void) { return NVML_CODE; }
nvmlReturn_t nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(nvmlReturn_t result) { return result == 9 ? "Driver Not Loaded" : "Unknown Error"; }
nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "590.48.01");
    return 0;
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    snprintf(version, length, "13.590.48.01");
    return 0;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 1;
    return 0;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *handle) {
    *handle = (nvmlDevice_t)&device;
    return index ? 2 : 0;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t handle, char *name, unsigned int length) {
    snprintf(name, length, "NVIDIA H100 80GB HBM3");
    return handle == (nvmlDevice_t)&device ? 0 : 2;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t handle, int *major, int *minor) {
    *major = 9;
    *minor = 0;
    return handle == (nvmlDevice_t)&device ? 0 : 2;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t *memory) {
    memory->total = 85520809984ULL;
    memory->used = 1048576ULL;
    memory->free = memory->total - memory->used;
    return handle == (nvmlDevice_t)&device ? 0 : 2;
}

int cuInit(unsigned int flags) { return flags ? 1 : CUDA_CODE; }
int cuDriverGetVersion(int *version) {
    *version = 13010;
    return 0;
}
