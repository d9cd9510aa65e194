// Package kaudit speaks to the kernel's audit system: it reads its records, says
// how it is set, and sets it when it is told to. It decides nothing about a
// record, knows no sandbox, and never makes itself the audit daemon, whose place
// may be taken.
//
// # Records
//
// The kernel hands each record to the audit daemon, if there is one, and to every
// socket in the multicast group READLOG (linux/audit.h, since Linux 3.16;
// CAP_AUDIT_READ). Joining the group disturbs nobody. Text that a program chose
// is written in quotes, or in hexadecimal if it holds a quote, a space or
// anything that is not printable (audit_log_untrustedstring in kernel/audit.c),
// so that no program can add a field to a record.
//
// # The switch
//
// Records of seccomp arrive even while auditing is off; those of Landlock (since
// Linux 6.15, ABI 7) only while it is on. Once it has been on, every process
// that is forked is prepared for records of its system calls, which slows each
// call, unless the rule "-a task,never" is there first.
package kaudit
