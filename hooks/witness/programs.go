package witness

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// blobSize is how much is read of the words that security modules keep with a
// process's credentials, in bytes: all modules of Linux 6.18 together use less.
const blobSize = 256

// A record of the lister, of one thread:
//
//	0   level           uint32, of its pid namespace
//	4   seccomp mode    uint32
//	8   seccomp filters uint32
//	16  newest filter   address
//	24  its numbers     four times struct upid, by level
//	88  blob            256 bytes
const (
	atLevel   = 0
	atMode    = 4
	atFilters = 8
	atFilter  = 16
	atNumbers = 24
	atBlob    = atNumbers + maxLevels*upidSize

	recordSize = atBlob + blobSize
)

// maxLevels is how deep below the machine's pid namespace ours may be, in which
// threads have the numbers that /proc shows; upidSize is that of struct upid.
const (
	maxLevels = 4
	upidSize  = 16
)

// license is what the kernel asks of a program that reads its memory; these
// few instructions may be had under either.
const license = "Dual BSD/GPL"

// lister is a task iterator (Linux 5.8): it is called with every thread, under
// the kernel's own protection against its end, and writes a record. What it
// cannot read is left zero.
func lister(l *layout) *ebpf.ProgramSpec {
	const scratch = -8 // a pointer on the way
	record := int32(scratch - recordSize)
	read := func(to int32, size int32, from asm.Register, offset int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, to),
			asm.Mov.Imm(asm.R2, size),
			asm.Mov.Reg(asm.R3, from), asm.Add.Imm(asm.R3, offset),
			asm.FnProbeReadKernel.Call(),
		}
	}
	follow := asm.LoadMem(asm.R8, asm.RFP, scratch, asm.DWord)
	code := asm.Instructions{
		asm.LoadMem(asm.R7, asm.R1, 8, asm.DWord), // struct bpf_iter__task: the task, 0 at the end
		asm.JEq.Imm(asm.R7, 0, "end"),
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord), // and its meta
		asm.LoadMem(asm.R6, asm.R6, 0, asm.DWord), // struct bpf_iter_meta: where to write
	}
	code = append(code, asm.StoreImm(asm.RFP, int16(record+atFilters+4), 0, asm.Word)) // nothing is there
	code = append(code, read(scratch, 8, asm.R7, l.taskPid)...)
	code = append(code, follow)
	code = append(code, read(record+atLevel, 4, asm.R8, l.pidLevel)...)
	code = append(code, read(record+atNumbers, maxLevels*upidSize, asm.R8, l.pidNumbers)...)
	code = append(code, read(record+atMode, 4, asm.R7, l.taskSeccomp+l.seccompMode)...)
	code = append(code, read(record+atFilters, 4, asm.R7, l.taskSeccomp+l.seccompCount)...)
	code = append(code, read(record+atFilter, 8, asm.R7, l.taskSeccomp+l.seccompFilter)...)
	code = append(code, read(scratch, 8, asm.R7, l.taskCred)...)
	code = append(code, follow)
	code = append(code, read(scratch, 8, asm.R8, l.credSecurity)...)
	code = append(code, follow)
	code = append(code, read(record+atBlob, blobSize, asm.R8, 0)...)
	code = append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, record),
		asm.Mov.Imm(asm.R3, recordSize),
		asm.FnSeqWrite.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("end"),
		asm.Return(),
	)
	return &ebpf.ProgramSpec{Name: "nemoclaw_list", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "task", License: license, Instructions: code}
}

// maxCopy is how much the copier copies at once, in bytes.
const maxCopy = 4096

// copier copies memory at an address into page, whose one value has maxCopy
// bytes: a program that runs when it is told to (Linux 5.14). Its argument is
// an address and a length, its result that of bpf_probe_read_kernel.
func copier(page *ebpf.Map) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{Name: "nemoclaw_copy", Type: ebpf.Syscall, License: license, Flags: sleepable, Instructions: asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R7, asm.R1, 8, asm.DWord),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, page.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "fail"),
		asm.JGT.Imm(asm.R7, maxCopy, "fail"),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Reg(asm.R3, asm.R6),
		asm.FnProbeReadKernel.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("fail"),
		asm.Return(),
	}}
}

// sleepable is BPF_F_SLEEPABLE, which programs of this type must be.
const sleepable = 1 << 4

// A window shows the kernel's memory.
type window struct {
	page   *ebpf.Map
	copier *ebpf.Program
}

func openWindow() (_ *window, err error) {
	w := new(window)
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.page, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: maxCopy, MaxEntries: 1}); err != nil {
		return nil, err
	}
	w.copier, err = ebpf.NewProgram(copier(w.page))
	return w, err
}

func (w *window) Close() {
	w.page.Close()
	w.copier.Close()
}

// at returns size bytes at address.
func (w *window) at(address uint64, size int) ([]byte, error) {
	var out []byte
	for size > 0 {
		n := min(size, maxCopy)
		ret, err := w.copier.Run(&ebpf.RunOptions{Context: struct{ Address, Length uint64 }{address, uint64(n)}})
		if err == nil && ret != 0 {
			err = fmt.Errorf("there is no memory at %#x", address)
		}
		var b []byte
		if err == nil {
			b, err = w.page.LookupBytes(uint32(0))
		}
		if err != nil {
			return nil, err
		}
		out = append(out, b[:n]...)
		address, size = address+uint64(n), size-n
	}
	return out, nil
}
