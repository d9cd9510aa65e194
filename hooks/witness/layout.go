package witness

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// layout is where the running kernel keeps what the witness reads: offsets in
// bytes, from its own description.
type layout struct {
	taskPid, taskCred, taskSeccomp                          int32
	pidLevel, pidNumbers, upidNumber, upidSpace, spaceInode int32
	credSecurity                                            int32
	seccompMode, seccompCount, seccompFilter                int32
	filterPrev, filterLog, filterProg                       int32
	progOrig                                                int32
	fprogLen, fprogFilter                                   int32
	rootNode, nodeLeft, nodeRight                           int32
	setInodes, setHierarchy, setRules                       int32
	setLayers, setMasks                                     int32
	hierarchyID                                             int32
	ruleObject, ruleLayers, ruleLayer                       int32
	layerLevel, layerAccess, layerSize                      int32
	accessSize                                              int32
	objectInode                                             int32
	inodeNumber, inodeSuper, superDev, superMagic           int32
	masksSize                                               int32
	maskFS, maskNet, maskScope                              bits
}

// bits is a bit field: where it begins in its structure, and how long it is.
type bits struct{ offset, size uint32 }

// of returns the field of the structure that b holds, little-endian as every
// machine that we run on.
func (f bits) of(b []byte) (v uint64) {
	for i := range f.size {
		at := f.offset + i
		v |= uint64(b[at/8]>>(at%8)&1) << i
	}
	return v
}

// readLayout asks the kernel for its description (Linux 5.2,
// CONFIG_DEBUG_INFO_BTF). What it does not find by its name is an error: a
// kernel that keeps it otherwise is not guessed at.
func readLayout() (*layout, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("the kernel does not describe itself (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	f := finder{kernel: kernel}
	l := &layout{
		taskPid: f.at("task_struct", "thread_pid"), pidLevel: f.at("pid", "level"), pidNumbers: f.at("pid", "numbers"),
		upidNumber: f.at("upid", "nr"), upidSpace: f.at("upid", "ns"),
		spaceInode: f.at("pid_namespace", "ns") + f.at("ns_common", "inum"),
		taskCred:   f.at("task_struct", "real_cred"), taskSeccomp: f.at("task_struct", "seccomp"),
		credSecurity: f.at("cred", "security"),
		seccompMode:  f.at("seccomp", "mode"), seccompCount: f.at("seccomp", "filter_count"), seccompFilter: f.at("seccomp", "filter"),
		filterPrev: f.at("seccomp_filter", "prev"), filterLog: f.at("seccomp_filter", "log"), filterProg: f.at("seccomp_filter", "prog"),
		progOrig: f.at("bpf_prog", "orig_prog"),
		fprogLen: f.at("sock_fprog_kern", "len"), fprogFilter: f.at("sock_fprog_kern", "filter"),
		rootNode: f.at("rb_root", "rb_node"), nodeLeft: f.at("rb_node", "rb_left"), nodeRight: f.at("rb_node", "rb_right"),
		setInodes: f.at("landlock_ruleset", "root_inode"), setHierarchy: f.at("landlock_ruleset", "hierarchy"),
		setRules: f.at("landlock_ruleset", "num_rules"), setLayers: f.at("landlock_ruleset", "num_layers"), setMasks: f.at("landlock_ruleset", "access_masks"),
		ruleObject: f.at("landlock_rule", "key"), ruleLayers: f.at("landlock_rule", "num_layers"), ruleLayer: f.at("landlock_rule", "layers"),
		layerLevel: f.at("landlock_layer", "level"), layerAccess: f.at("landlock_layer", "access"), layerSize: f.size("landlock_layer"),
		objectInode: f.at("landlock_object", "underobj"),
		inodeNumber: f.at("inode", "i_ino"), inodeSuper: f.at("inode", "i_sb"),
		superDev: f.at("super_block", "s_dev"), superMagic: f.at("super_block", "s_magic"),
		masksSize: f.size("access_masks"), maskFS: f.bits("access_masks", "fs"), maskNet: f.bits("access_masks", "net"), maskScope: f.bits("access_masks", "scope"),
	}
	l.accessSize = l.layerSize - l.layerAccess
	if size := f.size("upid"); size != upidSize && f.err == nil {
		f.err = fmt.Errorf("this kernel's struct upid has %d bytes", size)
	}
	if f.err != nil {
		return nil, f.err
	}
	f.optional(func() { l.hierarchyID = f.at("landlock_hierarchy", "id") }) // Linux 6.15
	return l, nil
}

// finder looks members up and keeps the first error.
type finder struct {
	kernel *btf.Spec
	err    error
}

func (f *finder) optional(look func()) {
	look()
	f.err = nil
}

func (f *finder) structure(name string) *btf.Struct {
	s := new(btf.Struct)
	if err := f.kernel.TypeByName(name, &s); err != nil && f.err == nil {
		f.err = fmt.Errorf("this kernel has no struct %s as the witness knows it", name)
	}
	return s
}

func (f *finder) size(name string) int32 { return int32(f.structure(name).Size) }

func (f *finder) at(name, member string) int32 { return int32(f.bits(name, member).offset / 8) }

func (f *finder) bits(name, member string) bits {
	m, at, ok := find(f.structure(name).Members, member)
	if !ok && f.err == nil {
		f.err = fmt.Errorf("this kernel's struct %s has no %s", name, member)
	}
	size := uint32(m.BitfieldSize)
	if n, err := btf.Sizeof(m.Type); size == 0 && err == nil {
		size = uint32(n) * 8
	}
	return bits{at, size}
}

// find looks for a member also in members without a name.
func find(members []btf.Member, name string) (btf.Member, uint32, bool) {
	for _, m := range members {
		if m.Name == name {
			return m, uint32(m.Offset), true
		}
		if m.Name != "" {
			continue
		}
		var within []btf.Member
		switch t := m.Type.(type) {
		case *btf.Struct:
			within = t.Members
		case *btf.Union:
			within = t.Members
		}
		if found, at, ok := find(within, name); ok {
			return found, uint32(m.Offset) + at, true
		}
	}
	return btf.Member{}, 0, false
}
