/* A board's start-up for qemu: vectors, memory, semihosting; calls run_all and exits with its result. No C library. */
#include <stddef.h>
#include <stdint.h>

extern uint32_t data_from, data_start, data_end, bss_start, bss_end, stack_top;
int run_all(void);

void *memcpy(void *to, const void *from, size_t n) {
  char *t = to;
  const char *f = from;
  while (n--) *t++ = *f++;
  return to;
}

void *memset(void *to, int value, size_t n) {
  char *t = to;
  while (n--) *t++ = (char)value;
  return to;
}

static void leave(uint32_t code) {
  volatile uint32_t block[2] = {0x20026, 0};
  register uint32_t operation __asm__("r0") = 0x20; /* SYS_EXIT_EXTENDED */
  register volatile uint32_t *argument __asm__("r1") = block;
  block[1] = code;
  __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(argument) : "memory");
  for (;;) {
  }
}

void reset(void) {
  uint32_t *from = &data_from, *to = &data_start;
  while (to < &data_end) *to++ = *from++;
  for (to = &bss_start; to < &bss_end;) *to++ = 0;
#if defined(__VFP_FP__) && !defined(__SOFTFP__)
  *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* the FPU on, before any float */
#endif
  leave((uint32_t)run_all());
}

static void fault(void) { leave(200); }

__attribute__((section(".vectors"), used)) void (*const vectors[16])(void) = {
    (void (*)(void)) & stack_top, reset, fault, fault, fault, fault, fault,
};
