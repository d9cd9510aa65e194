/*
 * nemoclaw-launch is the first program in a sandbox. It seals itself into the
 * Landlock ruleset that the runtime filled, proves that the seal holds, loads
 * the second seccomp filter, behind the first one where libcontainer loaded none,
 * and becomes the program that was asked for.
 *
 * It has no libc, allocates nothing, opens no file of the container and parses
 * one number. It trusts its four descriptors, made and sealed by the runtime,
 * and nothing else: arguments and environment belong to the container.
 *
 *	argv[0]     /proc/self/fd/N, how it was executed
 *	fd N        this program
 *	fd N+1      the plan, a sealed memfd: struct plan
 *	fd N+2      the Landlock ruleset
 *	fd N+3      the canary: a directory that no rule can cover
 *	argv[1...]  the program's own arguments, environment untouched
 *
 * Any surprise ends it with status 255, as a failed execve ends runc's init.
 */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#define PLAN_MAGIC 0x344c434eu /* "NCL4" */
#define PATH_ROOM  4096        /* PATH_MAX */
#define INSNS_ROOM 4096        /* BPF_MAXINSNS */
#define LIMITS_ROOM 2

/* runtime/seal.go writes this. */
struct plan {
	unsigned magic;
	unsigned short first;    /* instructions of the first filter, 0 if libcontainer loaded it */
	unsigned short insns;    /* of the second */
	unsigned restrict_flags; /* landlock_restrict_self(2) */
	unsigned limits;
	struct {
		unsigned long long resource;
		unsigned long long values[2]; /* struct rlimit64: soft, hard */
	} limit[LIMITS_ROOM];
	char path[PATH_ROOM];    /* resolved by the runtime, NUL-terminated */
	char cwd[PATH_ROOM];     /* to be entered again, or empty */
	struct sock_filter filter[2 * INSNS_ROOM]; /* the first, and behind it the second */
};

/* fcntl.h of the kernel wants libc's types: the few values, from uapi. */
#define F_GET_SEALS 1034
#define F_SEALED    (1 | 2 | 4 | 8) /* F_SEAL_{SEAL,SHRINK,GROW,WRITE} */
#define O_CLOEXEC   02000000
#define STDERR      2

static struct plan plan;

static long call(long nr, long a, long b, long c, long d)
{
#if defined(__x86_64__)
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
#else
#error "nemoclaw-launch runs on amd64 and arm64"
#endif
}

static void say(const char *text)
{
	long n = 0;

	while (text[n])
		n++;
	call(__NR_write, STDERR, (long)text, n, 0);
}

static void say_number(long n)
{
	char digits[21];
	int i = sizeof digits;

	digits[--i] = 0;
	do {
		digits[--i] = '0' + n % 10;
		n /= 10;
	} while (n);
	say(digits + i);
}

/* refuse ends the sandbox before anything of the image has run. */
static __attribute__((noreturn)) void refuse(const char *layer, const char *what, long err)
{
	say("nemoclaw: cannot run the program: ");
	say(layer);
	say(": ");
	say(what);
	if (err < 0) {
		say(": errno ");
		say_number(-err);
	}
	say("\n");
	call(__NR_exit_group, 255, 0, 0, 0);
	__builtin_trap(); /* a profile without exit_group: end by a signal */
}

/* own_descriptor reads N of "/proc/self/fd/N". */
static int own_descriptor(const char *s)
{
	int fd = 0;

	for (; *s; s++)
		fd = *s >= '0' && *s <= '9' && fd < 1 << 20 ? fd * 10 + (*s - '0') : 0;
	return fd;
}

static void read_plan(int fd)
{
	long n = call(__NR_fcntl, fd, F_GET_SEALS, 0, 0);

	if (n < 0 || (n & F_SEALED) != F_SEALED)
		refuse("launcher", "the plan is not sealed", n);
	n = call(__NR_pread64, fd, (long)&plan, sizeof plan, 0);
	if (n < 0)
		refuse("launcher", "the plan cannot be read", n);
	if (plan.magic != PLAN_MAGIC || plan.first > INSNS_ROOM || plan.insns == 0 || plan.insns > INSNS_ROOM ||
	    plan.limits > LIMITS_ROOM ||
	    n != (long)(sizeof plan - (2 * INSNS_ROOM - plan.first - plan.insns) * sizeof plan.filter[0]) ||
	    plan.path[PATH_ROOM - 1] || plan.cwd[PATH_ROOM - 1])
		refuse("launcher", "the plan is malformed", 0);
}

/*
 * enter_cwd enters the working directory by its name. Init entered it before
 * the runtime made the mounts that keep parts of it apart: from there they would
 * not be seen. Nothing of the container runs yet, and no right is gained by it.
 */
static void enter_cwd(void)
{
	long err = plan.cwd[0] ? call(__NR_chdir, (long)plan.cwd, 0, 0, 0) : 0;

	if (err)
		refuse("working directory", plan.cwd, err);
}

/* enter applies layer 1 and does not believe it until an access was denied. */
static void enter_landlock(int ruleset, int canary)
{
	long err = call(__NR_landlock_restrict_self, ruleset, plan.restrict_flags, 0, 0);

	if (err)
		refuse("landlock", "the ruleset cannot be enforced", err);
	err = call(__NR_openat, canary, (long)".", O_CLOEXEC, 0);
	if (err >= 0)
		refuse("landlock", "the ruleset is not enforced", 0);
	if (err != -EACCES)
		refuse("landlock", "the ruleset cannot be verified", err);
}

/* set_limits sets those that runc's init could not have lived with. */
static void set_limits(void)
{
	for (unsigned i = 0; i < plan.limits; i++) {
		long err = call(__NR_prlimit64, 0, plan.limit[i].resource, (long)plan.limit[i].values, 0);

		if (err)
			refuse("limits", "one cannot be set", err);
	}
}

static void load_filter(struct sock_filter *filter, unsigned short insns, long flags)
{
	struct sock_fprog prog = {insns, filter};
	long err = call(__NR_seccomp, SECCOMP_SET_MODE_FILTER, flags, (long)&prog, 0);

	if (err)
		refuse("seccomp", "the filter cannot be loaded", err);
}

/* enter_seccomp applies layer 2. What the second filter denies is logged, and of
 * equal answers the kernel takes that of the filter that was loaded last. */
static void enter_seccomp(void)
{
	if (plan.first)
		load_filter(plan.filter, plan.first, 0);
	load_filter(plan.filter + plan.first, plan.insns, SECCOMP_FILTER_FLAG_LOG);
}

__attribute__((used, noreturn)) void launch(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);
	char **envp = argv + argc + 1;

	if (argc < 2)
		refuse("launcher", "no program was given", 0);
	int fd = own_descriptor(argv[0]);
	if (fd < 3)
		refuse("launcher", "it was not started by the runtime", 0);

	read_plan(fd + 1);
	enter_cwd();
	enter_landlock(fd + 2, fd + 3);
	for (int i = 0; i < 4; i++) {
		long err = call(__NR_close, fd + i, 0, 0, 0);

		if (err) /* with the ruleset a program could widen later execs */
			refuse("launcher", "a descriptor cannot be closed", err);
	}
	set_limits();
	enter_seccomp();

	long err = call(__NR_execve, (long)plan.path, (long)(argv + 1), (long)envp, 0);
	refuse("execve", plan.path, err);
}

/* The kernel starts a program with argc at the top of the stack (System V ABI). */
#if defined(__x86_64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call launch\n");
#else
__asm__(".globl _start\n"
	"_start:\n"
	"	mov x29, xzr\n"
	"	mov x0, sp\n"
	"	b launch\n");
#endif
