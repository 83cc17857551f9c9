/* What boards.py runs on a core: instructions of an action, the stack that it used, the action; see boards.py. */
#include "policy.h"
#define TIMER ((volatile unsigned *)0x40000000)
#define STACK (1 << 19)

static void say(int v, char end) {
  static char text[16];
  char *p = text + 15;
  unsigned u = v < 0 ? -(unsigned)v : (unsigned)v;
  *--p = end;
  do *--p = (char)('0' + u % 10); while (u /= 10);
  if (v < 0) *--p = '-';
  register unsigned operation __asm__("r0") = 4; /* SYS_WRITE0 */
  register char *argument __asm__("r1") = p;
  __asm__ volatile("bkpt 0xab" : "+r"(operation) : "r"(argument) : "memory");
}

void __attribute__((weak)) policy_prepare(void) {}

static int stack_used(const float *observation, float *action) {
  volatile unsigned *sp, *p;
  __asm__ volatile("mov %0, sp" : "=r"(sp));
  for (p = sp - STACK / 4; p < sp; p++) *p = 0xA5A5A5A5u;
  policy_act(observation, action);
  for (p = sp - STACK / 4; p < sp && *p == 0xA5A5A5A5u; p++) continue;
  return (int)(sp - p) * 4;
}

int run_all(void) {
  static const float observation[] = POLICY_OBSERVATION;
  static float action[16];
  int k, stack;
  policy_prepare();
  stack = stack_used(observation, action);
  TIMER[2] = TIMER[1] = 0xFFFFFFFFu;
  TIMER[0] = 1;
  unsigned start = TIMER[1];
  for (k = 0; k < 100; k++) policy_act(observation, action);
  say((int)((start - TIMER[1]) * 40 / 100), ' ');
  say(stack, ' ');
  for (k = 0; k < POLICY_OUT; k++) say((int)(action[k] * 10000), ' ');
  return 0;
}
