package witness

import (
	"encoding/binary"
	"errors"
	"slices"
)

// What is read may be gone the next moment, and its memory something else's:
// nothing of it is a size or a number of steps without a bound.
const (
	maxLayers       = 16      // LANDLOCK_MAX_NUM_LAYERS
	maxRules        = 1 << 16 // ours have a few dozen
	maxFilters      = 1 << 10
	maxInstructions = 4096 // BPF_MAXINSNS
)

var errChanged = errors.New("what was being read changed meanwhile")

func (w *Witness) word64(address uint64) (uint64, error) {
	b, err := w.window.at(address, 8)
	if err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(b), nil
}

func (w *Witness) word32(address uint64) (uint32, error) {
	b, err := w.window.at(address, 4)
	if err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b), nil
}

// offset adds a member's offset to an address.
func offset(address uint64, member int32) uint64 { return address + uint64(member) }

func (w *Witness) domain(at uint64) (*Domain, error) {
	l := w.layout
	layers, err := w.word32(offset(at, l.setLayers))
	if err != nil {
		return nil, err
	}
	if layers == 0 || layers > maxLayers {
		return nil, errChanged
	}
	masks, err := w.window.at(offset(at, l.setMasks), int(layers)*int(l.masksSize))
	if err != nil {
		return nil, err
	}
	d := new(Domain)
	for ; len(masks) > 0; masks = masks[l.masksSize:] {
		d.Layers = append(d.Layers, Layer{l.maskFS.of(masks), l.maskNet.of(masks), l.maskScope.of(masks)})
	}
	hierarchy, err := w.word64(offset(at, l.setHierarchy))
	if err == nil && l.hierarchyID != 0 {
		d.ID, err = w.word64(offset(hierarchy, l.hierarchyID))
	}
	if err != nil {
		return nil, err
	}
	root, err := w.word64(offset(at, l.setInodes+l.rootNode))
	if err != nil {
		return nil, err
	}
	return d, w.rules(root, d)
}

// rules walks the tree of rules below the node at root.
func (w *Witness) rules(root uint64, d *Domain) error {
	l := w.layout
	for left := []uint64{root}; len(left) > 0; {
		at := left[len(left)-1]
		left = left[:len(left)-1]
		if at == 0 {
			continue
		}
		if len(d.Rules) == maxRules {
			return errChanged
		}
		b, err := w.window.at(at, int(l.ruleLayer))
		if err != nil {
			return err
		}
		r, err := w.rule(at, b, d)
		if err != nil {
			return err
		}
		d.Rules = append(d.Rules, r)
		left = append(left, binary.NativeEndian.Uint64(b[l.nodeLeft:]), binary.NativeEndian.Uint64(b[l.nodeRight:]))
	}
	return nil
}

// rule reads the rule at an address, whose head, without its layers, is b. In
// the kernel a layer also grants what it does not restrict; here it does not.
func (w *Witness) rule(at uint64, b []byte, d *Domain) (r Rule, err error) {
	l := w.layout
	n := binary.NativeEndian.Uint32(b[l.ruleLayers:])
	if n == 0 || int(n) > len(d.Layers) {
		return r, errChanged
	}
	layers, err := w.window.at(offset(at, l.ruleLayer), int(n)*int(l.layerSize))
	if err != nil {
		return r, err
	}
	r.Access = make([]uint64, len(d.Layers))
	for ; len(layers) > 0; layers = layers[l.layerSize:] {
		level := int(binary.NativeEndian.Uint16(layers[l.layerLevel:])) // from 1
		if level < 1 || level > len(d.Layers) {
			return r, errChanged
		}
		access := bits{uint32(l.layerAccess) * 8, uint32(l.accessSize) * 8}.of(layers)
		r.Access[level-1] = access & d.Layers[level-1].FS
	}
	return r, w.file(binary.NativeEndian.Uint64(b[l.ruleObject:]), &r)
}

// file identifies the file of the object at an address. A file system that was
// unmounted leaves an object without one.
func (w *Witness) file(object uint64, r *Rule) error {
	l := w.layout
	inode, err := w.word64(offset(object, l.objectInode))
	if err != nil || inode == 0 {
		return err
	}
	if r.Ino, err = w.word64(offset(inode, l.inodeNumber)); err != nil {
		return err
	}
	super, err := w.word64(offset(inode, l.inodeSuper))
	if err != nil {
		return err
	}
	dev, err := w.word32(offset(super, l.superDev))
	if err != nil {
		return err
	}
	r.Dev = mkdev(dev)
	r.Magic, err = w.word64(offset(super, l.superMagic))
	return err
}

// mkdev turns the kernel's own device number, twelve bits and twenty, into
// that of mkdev(3).
func mkdev(dev uint32) uint64 {
	major, minor := uint64(dev>>20), uint64(dev&(1<<20-1))
	return major&0xfff<<8 | minor&0xff | minor&^0xff<<12
}

func (w *Witness) filters(newest uint64) ([]Filter, error) {
	l := w.layout
	var list []Filter
	for at := newest; at != 0; {
		if len(list) == maxFilters {
			return nil, errChanged
		}
		b, err := w.window.at(at, int(max(l.filterPrev, l.filterProg, l.filterLog))+8)
		if err != nil {
			return nil, err
		}
		code, err := w.code(binary.NativeEndian.Uint64(b[l.filterProg:]))
		if err != nil {
			return nil, err
		}
		list = append(list, Filter{code, b[l.filterLog] != 0})
		at = binary.NativeEndian.Uint64(b[l.filterPrev:])
	}
	slices.Reverse(list)
	return list, nil
}

// code returns the instructions that the program at an address was made of. The
// kernel keeps them for checkpoints (CONFIG_CHECKPOINT_RESTORE); it translates
// them for itself.
func (w *Witness) code(prog uint64) ([]byte, error) {
	l := w.layout
	orig, err := w.word64(offset(prog, l.progOrig))
	if err != nil {
		return nil, err
	}
	if orig == 0 {
		return nil, errors.New("this kernel does not keep filters as they were loaded (CONFIG_CHECKPOINT_RESTORE)")
	}
	b, err := w.window.at(orig, int(max(l.fprogLen, l.fprogFilter))+8)
	if err != nil {
		return nil, err
	}
	n := int(binary.NativeEndian.Uint16(b[l.fprogLen:]))
	if n == 0 || n > maxInstructions {
		return nil, errChanged
	}
	const instruction = 8 // bytes of struct sock_filter
	return w.window.at(binary.NativeEndian.Uint64(b[l.fprogFilter:]), n*instruction)
}
