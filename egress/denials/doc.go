// Package denials tells each sandbox's monitor what the kernel refused to the
// programs in it: it reads audit records, finds out whose they are, and passes
// them on in bounds. It decides nothing, writes no file, and a reader that was
// taken over could lie about denials and do nothing else.
//
// # Whose a denial is
//
// A Landlock record names a domain. The kernel describes the domain once, at its
// first denial, with the executable that entered it: our launcher, whose memory
// file bears the sandbox's name. That first denial is the launcher's canary,
// which is not passed on. A program inside cannot make such a description: its
// own domains are not reported (LOG_SUBDOMAINS_OFF).
//
// A seccomp record names a process, which is found in its sandbox's cgroup as
// long as it lives. The first program of a container or an exec is known by its
// number also afterwards. The rest is counted as unknown.
//
// # In bounds
//
// A sandbox has its first burst denials told one by one and then one a second;
// the others are counted. Records that find no room in the kernel or in the
// socket are counted by the kernel.
package denials
