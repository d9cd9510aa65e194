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
// The filter is a list of comparisons. Two hundred lines write it in
// microseconds, the same bytes on every machine, without a cache of compiled
// programs that somebody could swap; libseccomp needs a quarter of a
// millisecond and does not know the calls of newer kernels by name.
package seccomp

//go:generate go run numbers_gen.go
