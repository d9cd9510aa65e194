// Package seccomp is layer 2 as data: the system calls that a sandbox may not
// make, each with its reason, compiled into a BPF program. It loads nothing and
// asks the kernel nothing; numbers_*.go holds what it knows of system calls.
//
// # Why a second filter
//
// The engine's profile stays what it is and a filter of ours is stacked on it.
// The kernel runs both and takes the stricter answer (seccomp(2)), so the
// result is never looser than either. Rules appended to the profile instead
// are ignored by libseccomp, silently, in three common cases: beside an
// unconditional rule for the same call, when the action equals the default's,
// and when another rule came first.
//
// # Why a compiler of our own
//
// The filter is a list of comparisons. Two hundred lines write it in forty
// microseconds, the same bytes for the same policy on every machine. So there is
// no cache of compiled programs, which somebody could swap: what create stores
// is stored for exec alone. libseccomp needs a quarter of a millisecond and does
// not know the calls of newer kernels by name.
//
// # Why Docker's default is compiled here
//
// Where the engine gave no profile, runc loads none, and libseccomp would take
// three milliseconds of each create and each exec to compile Docker's. It is made
// of few kinds of rules; compileProfile knows these and refuses others. The result
// is tested call by call against the program that libcontainer makes of the same
// profile. It stays a filter of its own below ours: what it denies is not logged.
//
// # Why a foreign call kills
//
// Under an engine's profile: a 32-bit or x32 call is told EPERM by our filter, but
// the first one is libseccomp's for the native architecture, which ends the thread
// by SIGSYS, and the kernel takes the stricter answer. libcontainer lets nobody choose another
// answer (SCMP_FLTATR_ACT_BADARCH). Compiling the profile for the other
// architectures too, so that ours alone answers, takes six times as long
// (BenchmarkFirstFilter): half of a container's start, to be more polite to
// programs that are refused either way.
package seccomp

//go:generate go run numbers_gen.go
