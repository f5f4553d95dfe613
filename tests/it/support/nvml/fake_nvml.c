/* A stand-in for NVIDIA's management library: two GPUs whose numbers change
 * with every look. GPU 1 has no energy counter and is lost after a number of
 * looks (FAKE_NVML_LOST_AFTER). GPU 0 lists the process FAKE_NVML_PID, and its
 * power is capped. Signatures as in nvml.h of CUDA 12. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, LOST = 15 };

typedef struct { unsigned index, looks; } Device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;

static Device devices[2] = {{0, 0}, {1, 0}};
static const unsigned long long MIB = 1ull << 20;

static unsigned number(const char *name, unsigned otherwise) {
    const char *text = getenv(name);
    return text ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

static int lost(const Device *device) {
    return device->index == 1 && device->looks > number("FAKE_NVML_LOST_AFTER", 1u << 30);
}

static int copy(char *to, unsigned length, const char *text) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return copy(version, length, "570.86.15");
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    if (index > 1) return INVALID_ARGUMENT;
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned length) {
    return copy(name, length, device->index ? "Imaginary B" : "Imaginary A");
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory *memory) {
    device->looks++;
    if (lost(device)) return LOST;
    memory->total = 24ull << 30;
    memory->reserved = 300 * MIB;
    memory->used = 1500 * MIB + (device->looks % 16) * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    if (lost(device)) return LOST;
    rates->gpu = device->index ? 0 : 40 + device->looks % 20;
    rates->memory = rates->gpu / 2;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *milliwatts) {
    if (lost(device)) return LOST;
    *milliwatts = device->index ? 20000 : 200000 + 1000 * (device->looks % 10);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    if (device->index) return NOT_SUPPORTED;
    *millijoules = 1000000ull + 10000ull * device->looks;
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *milliwatts) {
    (void)device;
    *milliwatts = 210000;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device *device, int domain, unsigned *mhz) {
    if (lost(device)) return LOST;
    *mhz = domain == 2 ? 6251 : 1410 - 15 * (device->looks % 4);
    return SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(Device *device, int domain, unsigned *mhz) {
    (void)device;
    *mhz = domain == 2 ? 6251 : 1980;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius) {
    (void)sensor;
    if (lost(device)) return LOST;
    *celsius = 60 + device->looks % 5;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) {
    if (lost(device)) return LOST;
    *reasons = device->index ? 1ull : 4ull; /* idle, and a software power cap */
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *processes) {
    if (lost(device)) return LOST;
    unsigned num = device->index ? 0 : 1;
    if (*count < num) {
        *count = num;
        return INSUFFICIENT_SIZE;
    }
    *count = num;
    if (num) {
        processes[0].pid = number("FAKE_NVML_PID", 1);
        processes[0].used = 1000 * MIB + (device->looks % 16) * MIB;
        processes[0].gpu_instance = processes[0].compute_instance = 0xFFFFFFFFu;
    }
    return SUCCESS;
}
