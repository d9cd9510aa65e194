package monitor

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/egress/kaudit"
)

// maxRights bounds the rights of one denial: the kernel knows some twenty.
const maxRights = 32

// denied writes down what the reader of the kernel's audit records tells of a
// container. What cannot be written is not counted; the fault shows in Status.
func (m *Monitor) denied(o *observer, t *control.Told) {
	var lines []audit.Entry
	for i := range t.Denials {
		lines = append(lines, m.denial(o.box.ID, &t.Denials[i]))
	}
	more := 0
	for _, layer := range []string{control.LayerLandlock, control.LayerSeccomp} {
		if n := t.Folded[layer]; n > 0 {
			lines = append(lines, folded(o.box.ID, layer, n))
			more += n
		}
	}
	if more+t.Lost > 0 { // the reader says so less and less often
		o.miss(t.Lost)
		lines = append(lines, o.unsaidLine()...)
	}
	if len(lines) > 0 && m.log.Append(lines...) != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen.Recorded += len(t.Denials)
	o.seen.Folded += more
	o.seen.Unknown += t.Unknown
}

// folded stands for denials that came too fast to be written one by one.
func folded(id, layer string, n int) audit.Entry {
	e := audit.NewKernelDenial(id, audit.ActivityOther)
	e.Message = fmt.Sprintf("%d more denials, too many to be written one by one", n)
	e.Count = n
	e.Kernel = &audit.Kernel{Name: "denials", TypeID: 99}
	e.Actor = &audit.Actor{AppName: "several"}
	e.Unmapped.Layer = layer
	return e
}

func missed(id string, n int) audit.Entry {
	c := audit.NewChange(id, audit.KindMissed, fmt.Sprintf("%d audit records of this machine found no room: denials may be missing here", n))
	c.StatusID = 2
	c.Unmapped.Count = n
	return c
}

// miss counts what the reader lost, and what the kernel has lost since it was
// asked last.
func (o *observer) miss(n int) {
	n += o.lost()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen.Missed += n
	o.unsaid += n
}

// unsaidLine is the line about what was missed since there was one.
func (o *observer) unsaidLine() []audit.Entry {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.unsaid == 0 {
		return nil
	}
	line := missed(o.box.ID, o.unsaid)
	o.unsaid = 0
	return []audit.Entry{line}
}

// noteLost writes down, at the end, what was missed and not yet said.
func (m *Monitor) noteLost(o *observer) {
	o.miss(0)
	if line := o.unsaidLine(); line != nil {
		_ = m.log.Append(line...) // its fault shows in Status
	}
}

// denial makes the line of a denial. A layer that is none is written as the
// kernel's: a reader that says such things is not to be trusted.
func (m *Monitor) denial(id string, d *control.Denial) audit.Entry {
	var e *audit.Denied
	switch {
	case d.Layer == control.LayerLandlock && d.Path != "":
		name := clip(d.Path, maxText)
		e = audit.NewFileDenial(id, activity(d.Rights))
		e.File = &audit.Object{Name: path.Base(name), Path: name}
	case d.Layer == control.LayerLandlock:
		e = audit.NewKernelDenial(id, audit.ActivityOther)
		e.Kernel = &audit.Kernel{Name: cmp.Or(clip(strings.Join(d.Rights, ","), maxHost), "unknown"), TypeID: 99}
	default:
		name := cmp.Or(clip(d.Call, maxHost), "unknown")
		e = audit.NewKernelDenial(id, audit.ActivityInvoke)
		e.Kernel = &audit.Kernel{Name: name, TypeID: 2, SystemCall: name}
	}
	e.Time = d.Time.UnixMilli()
	if e.Actor = actor(m.denier(id, d)); e.Actor == nil {
		e.Actor = &audit.Actor{AppName: "unknown"}
	}
	e.Unmapped.Layer = clip(d.Layer, maxHost)
	for _, r := range d.Rights[:min(len(d.Rights), maxRights)] {
		e.Unmapped.Rights = append(e.Unmapped.Rights, clip(r, maxHost))
	}
	e.Unmapped.Device, e.Unmapped.Inode, e.Unmapped.OrChild = clip(d.Device, maxHost), clip(d.Inode, maxHost), d.OrChild
	return e
}

// denier is the process of a denial. What the kernel did not tell of it is read
// here, as long as its number is that of a process inside.
func (m *Monitor) denier(id string, d *control.Denial) *control.Process {
	if d.PID <= 0 {
		return nil
	}
	p := &control.Process{PID: d.PID, UID: uint32(d.UID), Name: d.Name, Exe: d.Exe}
	if p.Name == "" && m.members.whose(d.PID) == id {
		if st, err := readStat(d.PID); err == nil {
			p.Name, p.Exe = st.name, exe(d.PID)
		}
	}
	return p
}

// activities are what OCSF calls the rights of Landlock. Of several the first
// that is listed counts.
var activities = []struct {
	prefix   string
	activity int
}{
	{"fs.make_", audit.ActivityCreate},
	{"fs.remove_", audit.ActivityDelete},
	{"fs.refer", audit.ActivityRename},
	{"fs.write_file", audit.ActivityUpdate},
	{"fs.truncate", audit.ActivityUpdate},
	{"fs.read_", audit.ActivityRead},
}

func activity(rights []string) int {
	for _, a := range activities {
		for _, r := range rights {
			if strings.HasPrefix(r, a.prefix) {
				return a.activity
			}
		}
	}
	return audit.ActivityOther
}

// observable tells which denials are seen, and if not, why and what to do; and
// how many were.
func (m *Monitor) observable() control.Denials {
	s := &m.observers
	s.mu.Lock()
	list, d := slices.Clone(s.list), s.seen
	s.mu.Unlock()
	d.Landlock, d.Seccomp = control.Observable, control.Observable
	fault := errors.New("this gateway has no reader")
	for _, o := range list {
		o.miss(0)
		d = sum(d, o.counts())
		o.mu.Lock()
		fault = o.fault
		o.mu.Unlock()
	}
	if fault != nil {
		d.Landlock = "not observable: " + fault.Error()
		d.Seccomp = d.Landlock
		return d
	}
	status, err := kaudit.Get()
	switch {
	case !kaudit.ReportsLandlock():
		d.Landlock = "not observable: this kernel does not report them (Linux 6.15 does)"
	case err != nil:
		d.Landlock = "not known to be observable: " + err.Error()
	case status.Enabled == 0:
		d.Landlock = "not observable: kernel auditing is off; run nemoclawctl setup audit"
	}
	if !kaudit.ReportsSeccomp() {
		d.Seccomp = "not observable: kernel.seccomp.actions_logged does not list errno"
	}
	return d
}
