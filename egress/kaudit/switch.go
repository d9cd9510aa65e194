package kaudit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Locked is the value of Status.Enabled that nothing but a reboot changes.
const Locked = 2

// Status is how the kernel's audit system is set (struct audit_status in
// linux/audit.h).
type Status struct {
	Enabled      uint32 // 0 off, 1 on, Locked
	Daemon       uint32 // the audit daemon's pid, or 0
	BacklogLimit uint32 // records that may wait for the kernel's own thread; 0: any number
	Lost         uint32 // records that did not fit there, since boot
}

// statusSize is that of struct audit_status as of Linux 4.18. A kernel takes
// and gives what it knows of it.
const statusSize = 44

// Kernel is a conversation with the audit system. It takes CAP_AUDIT_CONTROL in
// the first user and pid namespaces.
type Kernel struct{ conn *netlink.Conn }

// Dial begins a conversation.
func Dial() (*Kernel, error) {
	conn, err := netlink.Dial(unix.NETLINK_AUDIT, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot speak to the kernel's audit system: %w", err)
	}
	return &Kernel{conn}, nil
}

// Close ends it.
func (k *Kernel) Close() { k.conn.Close() }

// Get asks for the status of a host's audit system.
func Get() (Status, error) {
	k, err := Dial()
	if err != nil {
		return Status{}, err
	}
	defer k.Close()
	return k.Status()
}

// Status asks how the audit system is set.
func (k *Kernel) Status() (Status, error) {
	var s Status
	err := k.ask(unix.AUDIT_GET, nil, func(body []byte) bool {
		if len(body) < 32 {
			return false
		}
		for i, to := range map[int]*uint32{1: &s.Enabled, 3: &s.Daemon, 5: &s.BacklogLimit, 6: &s.Lost} {
			*to = binary.NativeEndian.Uint32(body[4*i:])
		}
		return true
	})
	if err != nil {
		return Status{}, fmt.Errorf("cannot ask how kernel auditing is set: %w", err)
	}
	return s, nil
}

// ask sends a request and passes on the answers of its type until one ends
// them. The kernel answers from a thread of its own, after the request.
func (k *Kernel) ask(typ netlink.HeaderType, body []byte, answer func([]byte) (last bool)) error {
	if _, err := k.conn.Send(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request}, Data: body}); err != nil {
		return err
	}
	for {
		messages, err := k.conn.Receive()
		if err != nil {
			return err
		}
		if len(messages) == 0 {
			return nil // the end of a list
		}
		for _, m := range messages {
			if m.Header.Type == typ && answer(m.Data) {
				return nil
			}
		}
		if messages[0].Header.Flags&netlink.Multi != 0 {
			return nil // Receive has read all of them
		}
	}
}

// change sends a request and waits for the kernel's word that it was done.
func (k *Kernel) change(typ netlink.HeaderType, body []byte) error {
	_, err := k.conn.Execute(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Acknowledge}, Data: body})
	return err
}

// SetEnabled turns auditing on or off. It leaves the daemon's place alone.
func (k *Kernel) SetEnabled(on uint32) error { return k.set(unix.AUDIT_STATUS_ENABLED, 1, on) }

// SetBacklogLimit sets how many records may wait in the kernel.
func (k *Kernel) SetBacklogLimit(n uint32) error {
	return k.set(unix.AUDIT_STATUS_BACKLOG_LIMIT, 5, n)
}

func (k *Kernel) set(mask uint32, at int, value uint32) error {
	body := make([]byte, statusSize)
	binary.NativeEndian.PutUint32(body, mask)
	binary.NativeEndian.PutUint32(body[4*at:], value)
	return k.change(unix.AUDIT_SET, body)
}

// A rule begins with its list, its action and the number of its fields, and has
// room for 64 masks and three times 64 fields (struct audit_rule_data).
const (
	ruleHeader = 12
	ruleSize   = ruleHeader + 4*64*4 + 4
)

// taskNever is the rule "-a task,never": no process is prepared for records of
// its system calls. All bits of its mask are set, as auditctl(8) sends it.
func taskNever() []byte {
	rule := make([]byte, ruleSize)
	binary.NativeEndian.PutUint32(rule[0:], unix.AUDIT_FILTER_TASK)
	binary.NativeEndian.PutUint32(rule[4:], unix.AUDIT_NEVER)
	for i := range 64 * 4 {
		rule[ruleHeader+i] = 0xff
	}
	return rule
}

// HasTaskNever reports whether the rule "-a task,never" is there.
func (k *Kernel) HasTaskNever() (found bool, err error) {
	want := taskNever()[:ruleHeader]
	err = k.ask(unix.AUDIT_LIST_RULES, nil, func(rule []byte) bool {
		found = found || len(rule) >= ruleHeader && slices.Equal(rule[:ruleHeader], want)
		return false
	})
	if err != nil {
		return false, fmt.Errorf("cannot list the audit rules: %w", err)
	}
	return found, nil
}

// AddTaskNever adds the rule; it is no error if it is there.
func (k *Kernel) AddTaskNever() error {
	if err := k.change(unix.AUDIT_ADD_RULE, taskNever()); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// RemoveTaskNever removes the rule as AddTaskNever made it; it is no error if
// it is not there.
func (k *Kernel) RemoveTaskNever() error {
	if err := k.change(unix.AUDIT_DEL_RULE, taskNever()); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// landlockABI is the first whose denials the kernel reports (Linux 6.15).
const landlockABI = 7

// ReportsLandlock tells whether this kernel has records of Landlock's denials.
func ReportsLandlock() bool {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	return errno == 0 && abi >= landlockABI
}

// actionsLogged lists which answers of filters are recorded (seccomp(2)).
const actionsLogged = "/proc/sys/kernel/seccomp/actions_logged"

// ReportsSeccomp tells whether this kernel is set to record calls that a filter
// answered with an error.
func ReportsSeccomp() bool {
	b, err := os.ReadFile(actionsLogged)
	return err == nil && slices.Contains(strings.Fields(string(b)), "errno")
}
