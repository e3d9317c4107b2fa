// Entry code, boot page tables, and the functions that compiled code calls by name.

// QEMU enters at the address in this note: 32-bit, paging off, ebx = PVH start info.
.section .note.pvh, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad pvh_start

.section .text.boot, "ax", @progbits
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov esp, offset stack_top
    lgdt [boot_gdt_pointer]
    mov eax, 0x620                  // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080             // EFER: LME, NXE
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010033             // CR0: PG, WP, NE, ET, MP, PE
    mov cr0, eax
    push 0x08
    mov eax, offset pvh_long
    push eax
    retf

.code64
pvh_long:
    mov esi, ebx
    xor edi, edi
    jmp common

// A predecessor enters here: 64-bit, its own tables, which map this image; rdi = boot parameters. Nothing of the
// predecessor is used from the third instruction on. An exception before the kernel has its own table resets the machine.
.global successor_start
successor_start:
    cli
    cld
    lea rsp, [rip + stack_top]
    lidt [rip + no_idt]
    lgdt [rip + boot_gdt_pointer]
    mov rsi, rdi
    lea rax, [rip + boot_pml4]
    mov cr3, rax
    mov eax, 0x620
    mov cr4, rax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010033
    mov cr0, rax
    push 0x08
    lea rax, [rip + successor_long]
    push rax
    retfq
successor_long:
    mov edi, 1

common:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + stack_top]
    xor ebp, ebp
    fninit
    ldmxcsr [rip + default_mxcsr]
    call kernel_entry
    ud2

.section .rodata.boot, "a", @progbits
.balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdt_pointer:
    .word 23
    .quad boot_gdt
no_idt:
    .word 0
    .quad 0
default_mxcsr:
    .long 0x1f80

// The first 4 GiB at their own addresses, until the kernel has built its real tables. Accessed and dirty are set, so the
// processor never writes here.
.section .data.boot, "aw", @progbits
.balign 4096
boot_pml4:
    .quad boot_pdpt + 0x23
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 0x23, boot_pd + 0x1023, boot_pd + 0x2023, boot_pd + 0x3023
    .fill 508, 8, 0
boot_pd:
.set page, 0
.rept 2048
    .quad page + 0xe3
    .set page, page + 0x200000
.endr

.section .text.memory, "ax", @progbits
.global memcpy, memmove, memset, memcmp, bcmp, strlen, rust_eh_personality, _Unwind_Resume
memmove:
    mov rax, rdi
    sub rax, rsi
    cmp rax, rdx
    jb 1f
memcpy:
    mov rax, rdi
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    mov ecx, edx
    and ecx, 7
    rep movsb
    ret
1:  // The destination begins inside the source: from the end downwards, the odd bytes first.
    mov rax, rdi
    lea rsi, [rsi + rdx - 1]
    lea rdi, [rdi + rdx - 1]
    std
    mov ecx, edx
    and ecx, 7
    rep movsb
    sub rsi, 7
    sub rdi, 7
    mov rcx, rdx
    shr rcx, 3
    rep movsq
    cld
    ret

memset:
    mov r8, rdi
    movzx eax, sil
    mov rcx, 0x0101010101010101
    imul rax, rcx
    mov rcx, rdx
    shr rcx, 3
    rep stosq
    mov ecx, edx
    and ecx, 7
    rep stosb
    mov rax, r8
    ret

memcmp:
bcmp:
    xor eax, eax
    mov rcx, rdx
    test rcx, rcx
    jz 2f
    repe cmpsb
    je 2f
    movzx eax, byte ptr [rdi - 1]
    movzx ecx, byte ptr [rsi - 1]
    sub ecx, eax
    mov eax, ecx
2:  ret

strlen:
    xor eax, eax
3:  cmp byte ptr [rdi + rax], 0
    je 4f
    inc rax
    jmp 3b
4:  ret

// Named by the prebuilt libraries, never reached: the profile aborts on panic.
rust_eh_personality:
_Unwind_Resume:
    ud2
