package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/kaudit"
	"nemoclaw/specs/settings"
)

var setupCommand = &cli.Command{
	Name:  "setup",
	Usage: "change what this host does for sandboxes",
	Subcommands: []*cli.Command{{
		Name:  "audit",
		Usage: "turn kernel auditing on, so that what Landlock denies is seen",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "undo", Usage: "restore what was before"},
			&cli.BoolFlag{Name: "check", Usage: "show how it is set, and change nothing"},
		},
		Action: setupAudit,
	}},
	Action: func(c *cli.Context) error {
		if c.Args().Present() {
			return usageError{fmt.Errorf("cannot set up %q: there is no such thing", c.Args().First())}
		}
		return cli.ShowSubcommandHelp(c)
	},
}

const (
	// backlog is how many records may wait in the kernel, about 10 MiB of them.
	// Its own default of 64 loses most of a few thousand denials in a row.
	backlog = 8192
	// auditBeforeFile is in the run directory: it ends with the machine's
	// uptime, as the setting does.
	auditBeforeFile = "audit-before.json"
)

// auditBefore is how kernel auditing was set before it was changed.
type auditBefore struct {
	Enabled      uint32 `json:"enabled"`
	BacklogLimit uint32 `json:"backlog_limit"`
	TaskNever    bool   `json:"task_never"` // the rule was there
}

func setupAudit(c *cli.Context) error {
	if err := wants(c, 0, 0); err != nil {
		return err
	}
	if c.Bool("undo") && c.Bool("check") {
		return usageError{errors.New("cannot undo and only check")}
	}
	set, err := settings.Load()
	if err != nil {
		return err
	}
	k, err := kaudit.Dial()
	if err != nil {
		return refusedAudit(err)
	}
	defer k.Close()
	now, err := auditNow(k)
	if err != nil {
		return refusedAudit(err)
	}
	file := filepath.Join(set.RunDir, auditBeforeFile)
	switch {
	case c.Bool("check"):
		return showAudit(c.App.Writer, k, now, file)
	case c.Bool("undo"):
		return undoAudit(c.App.Writer, k, file)
	}
	return doAudit(c.App.Writer, k, now, file)
}

func auditNow(k *kaudit.Kernel) (now auditBefore, err error) {
	status, err := k.Status()
	if err != nil {
		return now, err
	}
	now.Enabled, now.BacklogLimit = status.Enabled, status.BacklogLimit
	now.TaskNever, err = k.HasTaskNever()
	return now, err
}

// refusedAudit says what it means that the kernel does not let us.
func refusedAudit(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ECONNREFUSED):
		hint = "it takes root on the host itself (CAP_AUDIT_CONTROL); in a container or another user namespace there is no way"
	case errors.Is(err, unix.EPROTONOSUPPORT):
		hint = "this kernel was built without auditing"
	}
	return hinted{err, hint}
}

// doAudit changes only what is not as it should be, and keeps what was before
// the first time.
func doAudit(w io.Writer, k *kaudit.Kernel, now auditBefore, file string) error {
	if now.Enabled == kaudit.Locked {
		if !now.TaskNever {
			fmt.Fprintln(w, "kernel auditing is on; its configuration is locked until the next boot, and is left as it is")
		} else {
			fmt.Fprintln(w, "kernel auditing is on, and its configuration is locked: there is nothing to do")
		}
		return nil
	}
	if now.Enabled == 1 && now.TaskNever && enough(now.BacklogLimit) {
		fmt.Fprintln(w, "kernel auditing is on: there is nothing to do")
		return nil
	}
	if err := keepBefore(file, now); err != nil {
		return err
	}
	if !now.TaskNever && now.Enabled == 0 { // where it is on, somebody may want records of system calls
		if err := k.AddTaskNever(); err != nil {
			return refusedAudit(fmt.Errorf("cannot add the audit rule: %w", err))
		}
		fmt.Fprintln(w, "added the rule \"-a task,never\": no process started from now on pays for auditing with each system call;")
		fmt.Fprintln(w, "    rules about system calls (auditctl -S) see nothing of such processes")
	}
	if !enough(now.BacklogLimit) {
		if err := k.SetBacklogLimit(backlog); err != nil {
			return refusedAudit(fmt.Errorf("cannot raise the audit backlog: %w", err))
		}
		fmt.Fprintf(w, "raised the backlog limit from %d to %d records (at most some 10 MiB of kernel memory)\n", now.BacklogLimit, backlog)
	}
	if now.Enabled == 0 {
		if err := k.SetEnabled(1); err != nil {
			return refusedAudit(fmt.Errorf("cannot turn kernel auditing on: %w", err))
		}
		fmt.Fprintln(w, "turned kernel auditing on: what Landlock denies is reported; a denied call takes some microseconds more,")
		fmt.Fprintln(w, "    and without an audit daemon the reports are also in the kernel's log")
	}
	fmt.Fprintln(w, "until the next boot, or \"nemoclawctl setup audit --undo\"")
	return nil
}

// enough reports whether a backlog of limit records is: 0 is without limit.
func enough(limit uint32) bool { return limit == 0 || limit >= backlog }

// keepBefore writes what was before, unless an earlier setup did.
func keepBefore(file string, before auditBefore) error {
	b, err := json.Marshal(before)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("cannot keep what was before: %w", err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		_, err = f.Write(b)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return fmt.Errorf("cannot keep what was before: %w", err)
	}
	return nil
}

// undoAudit restores what was before, the switch first: without it the rule has
// no task.
func undoAudit(w io.Writer, k *kaudit.Kernel, file string) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(w, "nothing was changed since the last boot: there is nothing to undo")
		return nil
	}
	var before auditBefore
	if err == nil {
		err = json.Unmarshal(b, &before)
	}
	if err != nil {
		return fmt.Errorf("cannot tell what was before: %s: %w", file, err)
	}
	if err := k.SetEnabled(before.Enabled); err != nil {
		return refusedAudit(fmt.Errorf("cannot restore kernel auditing: %w", err))
	}
	if err := k.SetBacklogLimit(before.BacklogLimit); err != nil {
		return refusedAudit(fmt.Errorf("cannot restore the audit backlog: %w", err))
	}
	if !before.TaskNever {
		if err := k.RemoveTaskNever(); err != nil {
			return refusedAudit(fmt.Errorf("cannot remove the audit rule: %w", err))
		}
	}
	if err := os.Remove(file); err != nil {
		return fmt.Errorf("cannot forget what was before: %w", err)
	}
	fmt.Fprintf(w, "restored: auditing %s, backlog limit %d, rule \"-a task,never\" %s\n", onOff(before.Enabled), before.BacklogLimit, thereOrNot(before.TaskNever))
	if before.Enabled == 0 && !before.TaskNever {
		fmt.Fprintln(w, "the kernel prepares each process that is started from now on for records of its system calls, as it does once")
		fmt.Fprintln(w, "    auditing has been on, until the next boot; \"auditctl -a task,never\" spares that")
	}
	return nil
}

func showAudit(w io.Writer, k *kaudit.Kernel, now auditBefore, file string) error {
	status, err := k.Status()
	if err != nil {
		return refusedAudit(err)
	}
	daemon := "none"
	if status.Daemon != 0 {
		daemon = fmt.Sprintf("process %d", status.Daemon)
	}
	before := "not changed by nemoclawctl"
	if _, err := os.Stat(file); err == nil {
		before = "changed by nemoclawctl; --undo restores what was before"
	}
	return table(w, [][]string{
		{"kernel auditing:", onOff(now.Enabled)},
		{"rule -a task,never:", thereOrNot(now.TaskNever)},
		{"backlog limit:", fmt.Sprint(now.BacklogLimit)},
		{"records lost since boot:", fmt.Sprint(status.Lost)},
		{"audit daemon:", daemon},
		{"landlock denials:", reports(kaudit.ReportsLandlock() && now.Enabled != 0)},
		{"seccomp denials:", reports(kaudit.ReportsSeccomp())},
		{"", before},
	})
}

func onOff(enabled uint32) string {
	switch enabled {
	case 0:
		return "off"
	case kaudit.Locked:
		return "on, locked until the next boot"
	}
	return "on"
}

func thereOrNot(there bool) string {
	if there {
		return "there"
	}
	return "not there"
}

func reports(yes bool) string {
	if yes {
		return "reported"
	}
	return "not reported"
}
